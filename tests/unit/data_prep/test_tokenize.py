# SPDX-License-Identifier: Apache-2.0
"""The whole command: folders that grow, are resumed, and are never mixed up."""

import dataclasses
import io
import sys

import pytest
from tokenizers import Tokenizer

from bt_megatron.data.manifest import load_manifest
from bt_megatron.errors import DataError
from data_prep import pool
from data_prep import tokenizer as tokenizer_module
from data_prep.engines import ReferenceEngine
from data_prep.shard import saved_shards
from data_prep.streams import STDIN
from data_prep.tokenize import TokenizeOptions, tokenize
from data_prep.verify import find_faults


@pytest.fixture
def options(make_input, corpus_bytes, tokenizer_file, tmp_path):
    lines = corpus_bytes.split(b"\n")
    inputs = [
        make_input("00.jsonl.zst", b"\n".join(lines[:20])),
        make_input("01.jsonl", b"\n".join(lines[20:40])),
        make_input("02.jsonl.gz", b"\n".join(lines[40:])),
    ]
    return TokenizeOptions(inputs=inputs, tokenizer=tokenizer_file, out=tmp_path / "out")


def contents(folder):
    """Bytes by file name; records beside shards hold times and are left out."""
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if not path.name.endswith((".shard.json", ".lock"))
    }


def faults_in(folder):
    return list(find_faults(folder, on_bytes=lambda size: None))


def test_folder_is_complete_and_sound(options, tokenizer_file):
    manifest = tokenize(options)
    assert load_manifest(options.out) == manifest
    assert [shard.name for shard in manifest.shards] == ["00", "01", "02"]
    assert [shard.documents for shard in manifest.shards] == [20, 20, 20]
    assert manifest.tokenizer.vocab_size == 600
    assert (options.out / "tokenizer.json").read_bytes() == tokenizer_file.read_bytes()
    assert faults_in(options.out) == []
    assert not list(options.out.glob("*.tmp"))


def test_order_of_arguments_and_workers_do_not_change_a_byte(options, tmp_path):
    tokenize(options)
    other = dataclasses.replace(
        options, inputs=options.inputs[::-1], out=tmp_path / "other", workers=2
    )
    tokenize(other)
    assert contents(other.out) == contents(options.out)


def test_second_run_makes_nothing_anew(options, monkeypatch):
    first = tokenize(options)
    before = contents(options.out)
    monkeypatch.setattr(pool, "write_shard", lambda *_, **__: pytest.fail("made anew"))
    assert tokenize(options) == first
    assert contents(options.out) == before


@pytest.mark.parametrize("stop_at", [0, 1, 2])
def test_stopped_between_shards_and_run_again_gives_the_same_bytes(
    options, tmp_path, monkeypatch, stop_at
):
    undisturbed = dataclasses.replace(options, out=tmp_path / "undisturbed")
    tokenize(undisturbed)
    real, made = pool.write_shard, []

    def stopping(source, prefix, *rest, **named):
        if len(made) == stop_at:
            raise KeyboardInterrupt
        made.append(prefix.name)
        return real(source, prefix, *rest, **named)

    monkeypatch.setattr(pool, "write_shard", stopping)
    with pytest.raises(KeyboardInterrupt):
        tokenize(options)
    assert not (options.out / "manifest.json").exists()
    monkeypatch.setattr(pool, "write_shard", real)
    tokenize(options)
    assert contents(options.out) == contents(undisturbed.out)


def test_temporary_files_of_a_killed_run_do_no_harm(options):
    options.out.mkdir()
    for name in ("00.bin.tmp", "00.idx.tmp", "manifest.json.tmp", "01.bin"):
        (options.out / name).write_bytes(b"half")
    tokenize(options)
    assert faults_in(options.out) == []
    assert not list(options.out.glob("*.tmp"))


def test_inputs_given_later_are_added(options, tmp_path):
    for path in options.inputs:
        tokenize(dataclasses.replace(options, inputs=[path]))
    at_once = dataclasses.replace(options, out=tmp_path / "at once")
    tokenize(at_once)
    assert contents(options.out) == contents(at_once.out)


def test_folder_without_records_can_be_extended(options, tmp_path):
    tokenize(dataclasses.replace(options, inputs=options.inputs[:2]))
    for record in options.out.glob("*.shard.json"):
        record.unlink()
    assert len(tokenize(options).shards) == 3


def test_damaged_shard_is_made_anew(options):
    tokenize(options)
    before = contents(options.out)
    (options.out / "01.bin").write_bytes(b"")
    tokenize(options)
    assert contents(options.out) == before


def test_damaged_shard_of_an_input_not_given_is_named(options):
    tokenize(options)
    (options.out / "01.bin").unlink()
    with pytest.raises(DataError, match=r"01\.bin - is damaged or gone - give its input 01\.jsonl"):
        tokenize(dataclasses.replace(options, inputs=options.inputs[:1]))


def test_shards_of_another_tokenizer_are_refused(options, tmp_path):
    tokenize(options)
    before = contents(options.out)
    other = Tokenizer.from_file(str(options.tokenizer))
    other.add_tokens(["another"])
    other.save(str(tmp_path / "other.json"))
    with pytest.raises(DataError, match=r"vocabulary 600.*vocabulary 601.*use another --out"):
        tokenize(dataclasses.replace(options, tokenizer=tmp_path / "other.json"))
    assert contents(options.out) == before


def test_another_eos_token_is_refused(options):
    tokenize(options)
    with pytest.raises(DataError, match=r"EOS 0.*EOS 1.*--eos-token"):
        tokenize(dataclasses.replace(options, eos_token="<|padding|>"))


def test_tokenizer_that_is_not_ours_is_not_overwritten(options):
    options.out.mkdir()
    (options.out / "tokenizer.json").write_text("precious")
    with pytest.raises(DataError, match=r"is another tokenizer than"):
        tokenize(options)
    assert (options.out / "tokenizer.json").read_text() == "precious"


def test_problems_are_counted_over_inputs_and_reported(options, make_input, capsys):
    bad = make_input("03.jsonl", b'broken\n{"text": ""}\n{"text": "fine"}\nbroken\n')
    manifest = tokenize(dataclasses.replace(options, inputs=[*options.inputs, bad]))
    assert manifest.problems == {"empty_text": 1, "invalid_json": 2}
    assert manifest.subsets["unnamed"].documents == 1
    printed = capsys.readouterr().err
    assert "2 x invalid_json: the line is skipped" in printed
    assert "03.jsonl:4: " in printed


def test_cut_off_input_is_used_as_far_as_it_goes(options, make_input, corpus_bytes):
    path = make_input("03.jsonl.zst", corpus_bytes * 5)
    path.write_bytes(path.read_bytes()[:-20])  # inside one of the last blocks
    manifest = tokenize(dataclasses.replace(options, inputs=[path]))
    assert manifest.problems == {"truncated_file": 1}
    assert 0 < manifest.documents < 300


@pytest.mark.parametrize("workers", [1, 2])
def test_strict_stops_without_a_manifest(options, make_input, workers):
    bad = make_input("03.jsonl", b'{"text": "fine"}\nbroken\n')
    strict = dataclasses.replace(
        options, inputs=[*options.inputs, bad], strict=True, workers=workers
    )
    with pytest.raises(DataError, match=r"03\.jsonl:2: .*invalid_json"):
        tokenize(strict)
    assert not (options.out / "manifest.json").exists()
    assert not (options.out / "03.bin").exists()


def test_strict_does_not_reuse_a_shard_with_problems(options, make_input):
    lax = dataclasses.replace(options, inputs=[make_input("03.jsonl", b'{"text": "a"}\nbroken\n')])
    tokenize(lax)
    with pytest.raises(DataError, match=r"03\.jsonl:2: .*invalid_json"):
        tokenize(dataclasses.replace(lax, strict=True))


def test_no_document_at_all_is_an_error(options, make_input):
    with pytest.raises(DataError, match=r"03\.jsonl - no document among 7 bytes"):
        tokenize(dataclasses.replace(options, inputs=[make_input("03.jsonl", b"broken\n")]))
    assert not (options.out / "manifest.json").exists()


def test_standard_input_gives_the_same_shard_under_its_name(options, monkeypatch):
    tokenize(options)
    content = options.inputs[0].read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    manifest = tokenize(dataclasses.replace(options, inputs=[STDIN]))
    shards = {shard.name: shard for shard in manifest.shards}
    assert shards["stdin"].bin_sha256 == shards["00"].bin_sha256
    with pytest.raises(DataError, match="was made from another input"):
        tokenize(dataclasses.replace(options, inputs=[STDIN]))


def test_megatron_core_reads_the_folder(options):
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    manifest = tokenize(options)
    for shard in manifest.shards:
        dataset = IndexedDataset(str(options.out / shard.name))
        assert len(dataset) == shard.documents
        assert int(dataset.sequence_lengths.sum()) == shard.tokens


class WrongNowAndThen:
    """An engine that passes the test before the run and is wrong where a text says so."""

    name = "wrong 1"

    def __init__(self, content):
        self.real = ReferenceEngine(Tokenizer.from_str(content.decode()))

    def encode(self, texts):
        encoded = self.real.encode(texts)
        if any("zyzzyva" in text for text in texts):
            encoded.ids[0] += 1
        return encoded


def test_engine_that_differs_in_the_run_is_given_up_and_its_shards_are_made_anew(
    options, make_input, monkeypatch, tmp_path, capsys
):
    right = dataclasses.replace(options, engine="tokenizers", out=tmp_path / "right")
    late = make_input("03.jsonl", b'{"text": "a zyzzyva"}\n')
    right = dataclasses.replace(right, inputs=[*options.inputs, late])
    tokenize(right)

    monkeypatch.setattr(tokenizer_module, "FastEngine", WrongNowAndThen)
    tokenize(options)
    assert {saved.engine for saved in saved_shards(options.out)} == {"wrong 1"}
    assert [saved.compared for saved in saved_shards(options.out)] == [1, 1, 1]
    monkeypatch.setattr(pool, "_write_in_processes", None)
    tokenize(dataclasses.replace(options, inputs=[*options.inputs, late]))
    printed = capsys.readouterr().err
    assert "WARNING" in printed
    assert "wrong 1 differs from tokenizers: line 1 ('a zyzzyva'...): id 0 is" in printed
    assert all(saved.engine.startswith("tokenizers ") for saved in saved_shards(options.out))
    assert contents(options.out) == contents(right.out)


def test_shard_of_an_engine_that_differs_needs_its_input(options, make_input, monkeypatch):
    monkeypatch.setattr(tokenizer_module, "FastEngine", WrongNowAndThen)
    tokenize(options)
    late = make_input("03.jsonl", b'{"text": "a zyzzyva"}\n')
    with pytest.raises(DataError, match=r"00\.bin - was made by wrong 1.*give its input 00"):
        tokenize(dataclasses.replace(options, inputs=[late]))
    assert not (options.out / "03.bin").exists()
