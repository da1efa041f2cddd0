# SPDX-License-Identifier: Apache-2.0
"""A saved index is mapped, gives the same samples, and is whole or refused."""

import dataclasses
import json
import mmap

import numpy as np
import pytest

from bt_megatron.config.schema import DataConfig
from bt_megatron.data.dataset import PackedDataset
from bt_megatron.data.packed_index import PackedIndex, find_damage, index_folder, open_index
from bt_megatron.errors import DataError

CONFIG = DataConfig(path="data/books", seq_length=64, validation_fraction=0.2)


@pytest.fixture
def saved(numbered_corpus, tmp_path):
    """Save the index of a dataset; return the dataset and a way to open it again."""

    def again(config=CONFIG, block_length=4):
        return PackedDataset(
            numbered_corpus, config=config, block_length=block_length, indices=tmp_path
        )

    made = again()
    made.save(tmp_path)
    return made, again


def test_mapped_index_gives_the_same_samples(saved):
    made, again = saved
    mapped = again()
    assert (made.is_mapped, mapped.is_mapped) == (False, True)
    assert len(mapped) == len(made)
    for i in range(len(made)):
        assert np.array_equal(mapped[i].tokens, made[i].tokens)
        assert np.array_equal(mapped[i].mask, made[i].mask)


def test_mapped_index_needs_no_index_of_the_shards(saved, monkeypatch):
    """Starting reads headers only: whatever the corpus, no array of it is scanned."""
    _, again = saved

    def scanned(*_):
        raise AssertionError("a shard's index was read")

    monkeypatch.setattr("bt_megatron.data.corpus.TokenShard", scanned)
    mapped = again()
    assert mapped[len(mapped) - 1].tokens.shape == (64,)


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"seq_length": 32}, {"padding_seed": 7}, {"validation_fraction": 0.3}]
)
def test_index_of_other_settings_is_not_used(saved, change):
    _, again = saved
    assert not again(dataclasses.replace(CONFIG, **change)).is_mapped


def test_arrays_stay_on_disk(saved, tmp_path):
    made, _ = saved
    index = open_index(tmp_path, made.fingerprint)
    for field in dataclasses.fields(PackedIndex):
        array = getattr(index, field.name)
        assert isinstance(array.base, np.memmap | mmap.mmap)
        assert not array.flags.writeable


def test_saving_twice_keeps_the_first(saved, tmp_path):
    made, _ = saved
    before = index_folder(tmp_path, made.fingerprint).stat().st_ino
    made.save(tmp_path)
    assert index_folder(tmp_path, made.fingerprint).stat().st_ino == before
    assert [path.name for path in tmp_path.iterdir()] == [made.fingerprint[:32]]


def test_a_failed_save_leaves_nothing(numbered_corpus, tmp_path, monkeypatch):
    dataset = PackedDataset(numbered_corpus, config=CONFIG, block_length=4)

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bt_megatron.data.packed_index.write_json", full)
    with pytest.raises(OSError, match="No space"):
        dataset.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["starts", "sources", "lengths", "left_pads"])
def test_changed_array_is_found(saved, tmp_path, name):
    made, _ = saved
    path = index_folder(tmp_path, made.fingerprint) / f"{name}.npy"
    assert find_damage(tmp_path, made.fingerprint) == []
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (damage,) = find_damage(tmp_path, made.fingerprint)
    assert damage.startswith(f"{path} - has sha256 ")


def _cut(folder):
    path = folder / "sources.npy"
    path.write_bytes(path.read_bytes()[:-8])


def _shorten(folder):
    np.save(folder / "lengths.npy", np.load(folder / "lengths.npy")[:-1])


def _rename(folder):
    record = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(record | {"fingerprint": "0" * 64}))


def _forget(folder):
    record = json.loads((folder / "index.json").read_text())
    del record["sha256"]["left_pads"]
    (folder / "index.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_cut, r"sources\.npy - cannot be mapped"),
        (_shorten, "documents and .* tokens, its index.json says"),
        (_rename, "its index.json says"),
        (_forget, "of another version"),
        (lambda folder: (folder / "index.json").unlink(), r"index\.json - cannot be read"),
    ],
    ids=["cut", "short", "other", "array missing", "no record"],
)
def test_damaged_index_is_refused_with_what_to_do(saved, tmp_path, harm, message):
    made, again = saved
    harm(index_folder(tmp_path, made.fingerprint))
    with pytest.raises(DataError, match=message + ".*data_prep index"):
        again()
