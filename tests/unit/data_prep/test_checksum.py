# SPDX-License-Identifier: Apache-2.0
"""Published hashes are checked, joined or in pieces, and what was done is not done again."""

import hashlib
import os
import shutil

import pytest

from bt_megatron.data.index import TokenShardWriter, shard_paths
from bt_megatron.errors import DataError
from data_prep import checksum
from data_prep.__main__ import main
from data_prep.checksum import find_wanted, hash_all

NAME = "document"


@pytest.fixture
def folder(tmp_path):
    """Write a shard whose .bin file is in three pieces."""
    folder = tmp_path / "published"
    folder.mkdir()
    with TokenShardWriter(folder / NAME, "uint16") as writer:
        for i in range(50):
            writer.add_document(range(i, 2 * i))
    path = shard_paths(folder / NAME)[0]
    shutil.copy(path, tmp_path / "joined.bin")
    data = path.read_bytes()
    for number, (start, stop) in enumerate(((0, 1000), (1000, 1002), (1002, len(data)))):
        (folder / f"{NAME}-{number:05d}-of-00002.bin").write_bytes(data[start:stop])
    path.unlink()
    return folder


def joined_hash(folder):
    return hashlib.sha256((folder.parent / "joined.bin").read_bytes()).hexdigest()


def test_pieces_have_the_hash_of_the_joined_file(folder, capsys):
    assert main(["checksum", str(folder), "--sha256", joined_hash(folder)]) == 0
    assert f"{joined_hash(folder)}  {NAME}.bin: as published" in capsys.readouterr().out


def test_a_known_name_has_its_published_hash(folder, capsys, monkeypatch):
    monkeypatch.setitem(checksum.PUBLISHED, f"{NAME}.bin", joined_hash(folder))
    assert main(["checksum", str(folder)]) == 0
    out = capsys.readouterr().out
    assert f"{NAME}.bin: as published" in out
    assert f"{NAME}.idx: no published hash" in out


def test_another_hash_is_an_error_with_both(folder, capsys):
    assert main(["checksum", str(folder), "--sha256", "0" * 64]) == 4
    said = capsys.readouterr()
    assert f"{joined_hash(folder)}  {NAME}.bin: published is {'0' * 64}" in said.out
    assert "1 of 2 files are not what was published" in said.err


def test_a_list_of_hashes_names_pieces_or_the_joined_file(folder, tmp_path, capsys):
    names = [f"{NAME}-00001-of-00002.bin", f"{NAME}.idx"]
    lines = [f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
    sums = tmp_path / "SHA256SUMS"
    sums.write_text("# published\n" + "".join(lines) + f"{joined_hash(folder)} *{NAME}.bin\n")
    assert main(["checksum", str(folder), "--sums", str(sums)]) == 0
    assert capsys.readouterr().out.count("as published") == 3


def _count(folder, wanted, **options):
    """Hash and return (hashes, bytes really read)."""
    read = []
    original = checksum._read_from

    def counted(paths, start):
        for piece in original(paths, start):
            read.append(len(piece))
            yield piece

    checksum._read_from = counted
    try:
        hashes = hash_all(wanted, kept_in=folder / "state.json", on_bytes=lambda _: None, **options)
    finally:
        checksum._read_from = original
    return hashes, sum(read)


def test_what_was_hashed_is_not_read_again_until_it_changes(folder):
    wanted = find_wanted(folder)
    first, all_bytes = _count(folder, wanted)
    assert _count(folder, wanted) == (first, 0)
    path = folder / f"{NAME}-00001-of-00002.bin"
    path.write_bytes(b"\x01\x02")
    again, read = _count(folder, wanted)
    assert again[f"{NAME}.bin"] != first[f"{NAME}.bin"]
    assert 0 < read < all_bytes


@pytest.mark.parametrize("stop_after", [1, 5, 11, 16])
def test_interrupted_inside_a_file_it_goes_on_there(folder, monkeypatch, stop_after):
    monkeypatch.setattr(checksum, "_READ_BYTES", 150)
    monkeypatch.setattr(checksum, "_BYTES_BETWEEN_SAVES", 150)
    wanted = find_wanted(folder)[:1]
    pieces = 0

    def interrupt(_):
        nonlocal pieces
        pieces += 1
        if pieces > stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hash_all(wanted, kept_in=folder / "state.json", on_bytes=interrupt)
    hashes, read = _count(folder, wanted)
    assert hashes == {f"{NAME}.bin": joined_hash(folder)}
    whole = (folder.parent / "joined.bin").stat().st_size
    assert read <= whole - 150 * (stop_after - 3)


def test_damaged_state_is_started_over_or_named(folder):
    wanted = find_wanted(folder)[:1]
    hash_all(wanted, kept_in=folder / "state.json", on_bytes=lambda _: None)
    (folder / "state.json").write_text("{")
    with pytest.raises(DataError, match=r"state\.json - cannot be read as JSON.*hashed again"):
        hash_all(wanted, kept_in=folder / "state.json", on_bytes=lambda _: None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no file"),
        ("abc  x.bin", ":1 - is not `<64 hex digits>"),
        (None, "cannot be read"),
    ],
    ids=["empty", "line", "missing"],
)
def test_file_of_hashes_that_is_none_is_named(folder, tmp_path, text, message):
    path = tmp_path / "sums"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=message):
        find_wanted(folder, sums=path)


def test_missing_file_is_named(folder, tmp_path, capsys):
    sums = tmp_path / "sums"
    sums.write_text(f"{'0' * 64}  other.idx\n")
    assert main(["checksum", str(folder), "--sums", str(sums)]) == 4
    assert "other.idx - cannot be read: No such file" in capsys.readouterr().err


def test_one_hash_is_not_of_two_shards(folder):
    with TokenShardWriter(folder / "second", "uint16") as writer:
        writer.add_document([1])
    with pytest.raises(DataError, match="holds 2 shards, and --sha256 is of one"):
        find_wanted(folder, sha256="0" * 64)


def test_folder_without_shards_is_named(tmp_path):
    with pytest.raises(DataError, match=r"holds no \.idx file"):
        find_wanted(tmp_path)


def test_file_that_changes_meanwhile_is_an_error(folder):
    path = folder / f"{NAME}-00002-of-00002.bin"

    def change(_):
        os.utime(path, ns=(1, 1))

    with pytest.raises(DataError, match="changed while it was hashed"):
        hash_all(find_wanted(folder)[:1], kept_in=folder / "state.json", on_bytes=change)
