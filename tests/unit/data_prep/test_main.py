# SPDX-License-Identifier: Apache-2.0
"""The command line: exit codes, one-line errors, and what it must not import."""

import os
import signal
import subprocess
import sys
import time

import pytest

from bt_megatron.errors import DataError
from data_prep.__main__ import main


@pytest.fixture
def corpus(make_input, corpus_bytes):
    return make_input("corpus.jsonl.zst", corpus_bytes)


def test_commands_work_one_after_the_other(corpus, tmp_path, capsys):
    tokenizer, out = str(tmp_path / "tokenizer.json"), str(tmp_path / "out")
    train = ["train-tokenizer", str(corpus), "--vocab-size", "300", "--out", tokenizer]
    assert main(train) == 0
    assert main(["tokenize", str(corpus), "--tokenizer", tokenizer, "--out", out]) == 0
    capsys.readouterr()
    assert main(["describe", out]) == 0
    printed = capsys.readouterr().out
    assert "Even" in printed
    assert "total" in printed
    assert main(["verify", out]) == 0
    assert "sound" in capsys.readouterr().out


def test_describe_repeats_the_problems(make_input, tokenizer_file, tmp_path, capsys):
    bad = make_input("bad.jsonl", b'broken [/bold]\n{"text": "fine"}\n')
    out = str(tmp_path / "out")
    assert main(["tokenize", str(bad), "--tokenizer", str(tokenizer_file), "--out", out]) == 0
    assert "broken [/bold]" in capsys.readouterr().err
    main(["describe", out])
    assert "1 x invalid_json: the line is skipped\n    bad.jsonl:1: " in capsys.readouterr().out


def test_faults_give_the_exit_code_of_data_errors(corpus, tokenizer_file, tmp_path, capsys):
    out = tmp_path / "out"
    main(["tokenize", str(corpus), "--tokenizer", str(tokenizer_file), "--out", str(out)])
    (out / "corpus.bin").write_bytes(b"")
    assert main(["verify", str(out)]) == DataError.exit_code
    printed = capsys.readouterr().err
    assert "fault: " in printed
    assert "corpus.bin - has 0 bytes" in printed
    assert "2 faults" in printed


@pytest.mark.parametrize(
    "arguments",
    [
        ["describe", "{folder}"],
        ["verify", "{folder}"],
        ["tokenize", "{folder}/absent.jsonl", "--tokenizer", "{tokenizer}", "--out", "{folder}/o"],
        ["tokenize", "{corpus}", "--tokenizer", "{folder}/none.json", "--out", "{folder}/o"],
        ["tokenize", "{corpus}", "--tokenizer", "{tokenizer}", "--out", "{corpus}"],
        ["tokenize", "{corpus}", "--tokenizer", "{tokenizer}"],
        ["tokenize", "--plan", "{folder}/plan.json"],
        ["tokenize", "{corpus}", "--plan", "{folder}/plan.json", "--task", "0"],
        ["merge", "--out", "{folder}/o"],
        ["merge", "{folder}", "--plan", "{folder}/plan.json", "--out", "{folder}/o"],
        ["plan", "{corpus}", "--tokenizer", "{tokenizer}", "--out", "{folder}", "--tasks", "0"],
        ["train-tokenizer", "{corpus}", "--vocab-size", "9", "--out", "{folder}/t.json"],
    ],
    ids=[
        "describe",
        "verify",
        "input",
        "tokenizer",
        "out is a file",
        "no out",
        "no task",
        "plan and inputs",
        "nothing",
        "both",
        "no tasks",
        "vocabulary",
    ],
)
def test_user_errors_are_one_line(arguments, corpus, tokenizer_file, tmp_path, capsys):
    names = {"folder": tmp_path, "corpus": corpus, "tokenizer": tokenizer_file}
    code = main([argument.format(**names) for argument in arguments])
    printed = capsys.readouterr().err.strip().split("\n")
    assert code == DataError.exit_code
    assert printed[-1].startswith("error: ")
    assert "Traceback" not in "".join(printed)


def test_a_plan_is_tokenized_task_by_task_and_merged(
    make_input, corpus_bytes, tokenizer_file, tmp_path, capsys
):
    inputs = [str(make_input(f"{name}.jsonl", corpus_bytes)) for name in "abc"]
    given = [*inputs, "--tokenizer", str(tokenizer_file), "--out"]
    plan, out = str(tmp_path / "work/plan.json"), str(tmp_path / "all")
    assert main(["plan", *given, str(tmp_path / "work"), "--tasks", "2"]) == 0
    assert "3 inputs in 2 tasks" in capsys.readouterr().out
    for task in ("0", "1"):
        assert main(["merge", "--plan", plan, "--out", out]) == DataError.exit_code
        assert main(["tokenize", "--plan", plan, "--task", task, "--workers", "1"]) == 0
    assert main(["merge", "--plan", plan, "--out", out]) == 0
    assert main(["merge", "--plan", plan, "--out", str(tmp_path / "joined"), "--join", "one"]) == 0
    assert main(["tokenize", *given, str(tmp_path / "at once"), "--workers", "1"]) == 0
    for name in ("a.bin", "b.idx", "manifest.json"):
        assert (tmp_path / "all" / name).read_bytes() == (tmp_path / "at once" / name).read_bytes()
    for folder in (out, str(tmp_path / "joined")):
        assert main(["verify", folder]) == 0
    plot = tmp_path / "plot.png"
    assert main(["describe", out, "--plot", str(plot)]) == 0
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "command", ["tokenize", "train-tokenizer", "describe", "verify", "plan", "merge"]
)
def test_help_of_each_command(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert command in capsys.readouterr().out


def test_neither_torch_nor_transformers_is_imported(repository):
    code = (
        "import sys, data_prep.__main__, bt_megatron.data.index, bt_megatron.data.manifest;"
        "print(sorted({'torch', 'transformers', 'megatron'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=repository
    )
    assert run.stdout == "[]\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["int", "term"])
def test_signal_ends_in_order_and_the_command_can_be_run_again(
    number, make_input, corpus_bytes, tokenizer_file, tmp_path, repository
):
    inputs = [make_input("a.jsonl", corpus_bytes), make_input("b.jsonl", corpus_bytes * 300)]
    out = tmp_path / "out"
    command = [sys.executable, "-m", "data_prep", "tokenize", *map(str, inputs)]
    command += ["--tokenizer", str(tokenizer_file), "--out", str(out), "--workers", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=repository)
    deadline = time.monotonic() + 60
    while not (out / "b.bin.tmp").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, number)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted - run the same command again" in printed
    assert "Traceback" not in printed
    assert sorted(path.name for path in out.iterdir()) == [
        ".lock",
        "a.bin",
        "a.idx",
        "a.shard.json",
        "tokenizer.json",
    ]
