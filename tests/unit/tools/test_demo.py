# SPDX-License-Identifier: Apache-2.0
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest

from bt_megatron.checkpoint.folder import step_folder
from bt_megatron.checkpoint.manifest import Manifest, write_manifest
from bt_megatron.config.load import load_run
from bt_megatron.errors import BtError
from bt_megatron.observe.run_folder import RunFolder
from tools.demo import CONFIG, ROOT, Step, plan_steps, run_steps

INTERRUPTED = """
import sys
from tools.demo import Step, run_steps

inner = '''
import signal, sys, time
def stop(number, frame):
    print("saved", flush=True)
    sys.exit(75)
signal.signal(signal.SIGINT, stop)
print("started", flush=True)
time.sleep(60)
'''
never = Step(title="never", command=("python", "-c", "print('too late')"))
try:
    run_steps([Step(title="long", command=("python", "-c", inner)), never])
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    settings = [f"runs_dir={tmp_path / 'runs'}", f"data.path={tmp_path / 'data'}"]
    return load_run([CONFIG], settings).config


@pytest.fixture
def _signals():
    """Put the handlers back that running steps installs."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def step_named(config, word):
    steps = plan_steps(config, settings=[], processes=1)
    return next(step for step in steps if any(word in part for part in step.command))


def write_checkpoint(config, step):
    folder = step_folder(RunFolder.of(config).checkpoints, step)
    folder.mkdir(parents=True)
    manifest = Manifest(
        step=step,
        tokens=1,
        config=asdict(config),
        world_size=1,
        data_fingerprint="",
        versions={},
        files={},
    )
    write_manifest(folder, manifest)
    return folder / "manifest.json"


def test_nothing_is_done_in_the_beginning(config):
    assert not any(step.is_done() for step in plan_steps(config, settings=[], processes=2))


def test_settings_reach_what_reads_the_run(config):
    steps = plan_steps(config, settings=["train.steps=5"], processes=2)
    told = [step for step in steps if step.command[-2:] == ("--set", "train.steps=5")]

    assert len(told) == 2
    assert told[1].typed == (
        f"OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m bt_megatron train {CONFIG} "
        "--set train.steps=5"
    )


def test_one_process_needs_no_launcher(config):
    training = plan_steps(config, settings=[], processes=1)[3]
    assert training.command[:4] == ("python", "-m", "bt_megatron", "train")


def test_training_is_done_at_the_last_step_of_the_same_run(config):
    training = plan_steps(config, settings=[], processes=1)[3]
    write_checkpoint(config, config.train.steps - 1)
    assert not training.is_done()
    write_checkpoint(config, config.train.steps)
    assert training.is_done()

    other = replace(config, optimizer=replace(config.optimizer, lr=1e-5))
    assert not plan_steps(other, settings=[], processes=1)[3].is_done()


def test_an_export_is_done_until_there_is_a_newer_checkpoint(config):
    exporting = step_named(config, "tools.export")
    manifest = write_checkpoint(config, config.train.steps)
    exported = RunFolder.of(config).path / "export" / "config.json"
    exported.parent.mkdir()
    exported.write_text("{}")
    os.utime(exported, (200, 200))
    os.utime(manifest, (100, 100))
    assert exporting.is_done()
    os.utime(manifest, (300, 300))
    assert not exporting.is_done()


@pytest.mark.usefixtures("_signals")
def test_commands_are_printed_and_what_is_done_is_kept(capfd):
    steps = [
        Step(title="first", command=("python", "-c", "print('ran 1')"), threads=3),
        Step(title="second", command=("python", "-c", "print('ran 2')"), is_done=lambda: True),
    ]
    seconds = run_steps(steps)

    assert list(seconds) == ["first"]
    printed = capfd.readouterr().out
    assert "$ OMP_NUM_THREADS=3 python -c 'print('\"'\"'ran 1'\"'\"')'\nran 1\n" in printed
    assert printed.endswith("is there already and fits: kept\n")


@pytest.mark.usefixtures("_signals")
def test_threads_are_those_that_are_printed(capfd):
    command = ("python", "-c", "import os; print('threads', os.environ['OMP_NUM_THREADS'])")
    run_steps([Step(title="first", command=command, threads=3)])
    assert "\nthreads 3\n" in capfd.readouterr().out


@pytest.mark.usefixtures("_signals")
def test_a_failed_command_ends_the_demo_with_its_code(capfd):
    failing = Step(title="fails", command=("python", "-c", "raise SystemExit(4)"))
    with pytest.raises(BtError, match="ended with exit code 4") as error:
        run_steps([failing, Step(title="after", command=("python", "-c", "print('too late')"))])

    assert error.value.exit_code == 4
    assert "after" not in capfd.readouterr().out


def test_an_interrupt_lets_the_running_command_save(tmp_path):
    output = tmp_path / "output"
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", INTERRUPTED], cwd=ROOT, stdout=file, stderr=file
        )
    try:
        _wait_until(lambda: "started" in output.read_text().splitlines(), process)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
    lines = output.read_text().splitlines()
    assert lines[-2:] == ["saved", "interrupted"]


def _wait_until(is_true, process):
    deadline = time.monotonic() + 60
    while not is_true():
        assert process.poll() is None, "the process has ended"
        assert time.monotonic() < deadline
        time.sleep(0.02)
