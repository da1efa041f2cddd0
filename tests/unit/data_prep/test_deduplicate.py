# SPDX-License-Identifier: Apache-2.0
"""Lists of duplicates over several data folders, and runs that leave them out."""

import dataclasses

import numpy as np
import pytest

from bt_megatron.config.schema import DataConfig
from bt_megatron.data.dataset import PackedDataset
from bt_megatron.data.drop_list import load_drop_list
from bt_megatron.data.sources import open_corpus
from bt_megatron.errors import DataError
from data_prep import deduplicate as module
from data_prep.__main__ import main
from tests.data_folders import make_folder

RNG = np.random.default_rng(0)
WORDS = 50_000
TEXTS = np.split(RNG.permutation(np.arange(4, 1204)), 6)


def near(text, *, changed=2):
    """Change some tokens: each touches five runs of five."""
    copy = text.copy()
    copy[np.linspace(20, 180, changed).astype(int)] = 3
    return copy


@pytest.fixture
def folders(tmp_path):
    one = [TEXTS[0], TEXTS[1], TEXTS[0], TEXTS[2]]
    other = [TEXTS[3], TEXTS[1], near(TEXTS[2]), near(TEXTS[3], changed=30), TEXTS[4]]
    return [
        make_folder(tmp_path / name, documents=documents, words=WORDS)
        for name, documents in (("one", one), ("other", other))
    ]


def run(folders, out, *more):
    return main(["deduplicate", *map(str, folders), "--out", str(out), *more])


def dropped(folder, out):
    corpus = open_corpus(DataConfig(path=str(folder)))
    path = out / f"{folder.name}.drop.npz"
    return load_drop_list(path, corpus_fingerprint=corpus.fingerprint).documents.tolist()


def test_equal_documents_stay_where_they_come_first(folders, tmp_path, capsys):
    out = tmp_path / "lists"
    assert run(folders, out) == 0
    assert [dropped(folder, out) for folder in folders] == [[2], [1]]
    assert run(folders[::-1], tmp_path / "turned") == 0
    assert [dropped(folder, tmp_path / "turned") for folder in folders] == [[1, 2], []]
    assert f"one: data.drop={out / 'one.drop.npz'}" in capsys.readouterr().out


def test_near_documents_are_found_if_asked(folders, tmp_path):
    assert run(folders, tmp_path / "lists", "--near", "0.8") == 0
    assert [dropped(folder, tmp_path / "lists") for folder in folders] == [[2], [1, 2]]


def test_interrupted_it_goes_on_with_the_same_result(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_PART_DOCUMENTS", 2)
    out = tmp_path / "lists"
    computed = []
    whole = module.signatures

    def counted(documents, first, last, **options):
        computed.append(first)
        if len(computed) == 3:
            raise KeyboardInterrupt
        return whole(documents, first, last, **options)

    monkeypatch.setattr(module, "signatures", counted)
    assert run(folders, out, "--near", "0.8") == 130
    assert run(folders, out, "--near", "0.8") == 0
    assert computed == [0, 2, 0, 0, 2, 4]  # the third part, again, then the rest
    assert [dropped(folder, out) for folder in folders] == [[2], [1, 2]]


def test_a_run_does_not_read_what_is_dropped(folders, tmp_path):
    assert run(folders, tmp_path / "lists", "--near", "0.8") == 0
    config = DataConfig(
        path=str(folders[1]),
        drop=str(tmp_path / "lists" / "other.drop.npz"),
        seq_length=64,
        validation_fraction=0,
    )
    corpus = open_corpus(config)
    kept = PackedDataset(corpus, config=config, block_length=4)
    everything = PackedDataset(
        corpus, config=dataclasses.replace(config, drop=None), block_length=4
    )
    read = {int(token) for i in range(len(kept)) for token in kept[i].tokens}
    assert (kept.num_documents, everything.num_documents) == (3, 5)
    assert not read & set(TEXTS[1].tolist())
    assert read >= set(TEXTS[3].tolist())
    assert kept.fingerprint != everything.fingerprint


def test_list_of_other_data_is_refused(folders, tmp_path):
    assert run(folders, tmp_path / "lists") == 0
    config = DataConfig(path=str(folders[0]), drop=str(tmp_path / "lists" / "other.drop.npz"))
    with pytest.raises(DataError, match="is of the corpus .*, the data is .* make it again"):
        PackedDataset(open_corpus(config), config=config, block_length=4)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut", b"no list"], ids=str)
def test_file_that_is_no_list_is_named(folders, tmp_path, content):
    path = tmp_path / "x.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.npz - cannot be read as a list"):
        load_drop_list(path, corpus_fingerprint="")


def test_folders_of_one_name_are_refused(folders, tmp_path, capsys):
    (tmp_path / "b").mkdir()
    again = make_folder(tmp_path / "b" / "one")
    assert run([folders[0], again], tmp_path / "lists") == 4
    assert "two folders are named one" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["0.1", "1", "x"])
def test_similarity_is_one(folders, tmp_path, value):
    with pytest.raises(SystemExit):
        run(folders, tmp_path, "--near", value)
