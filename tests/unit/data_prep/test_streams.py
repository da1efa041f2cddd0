# SPDX-License-Identifier: Apache-2.0
"""Lines of plain, compressed, many-framed, cut-off and damaged inputs."""

import gzip
import hashlib
import io
import os
import struct
import sys

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from bt_megatron.errors import DataError
from data_prep import streams
from data_prep.problems import ProblemLog
from data_prep.streams import STDIN, RawInput, read_blocks


def zstd(content):
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


def lines_of(path, **options):
    problems = ProblemLog(path.name)
    with RawInput(path) as raw:
        lines = [line for block in read_blocks(raw, problems, **options) for line in block.lines]
    return lines, {kind: record.count for kind, record in problems.records().items()}, raw


@pytest.fixture
def read(tmp_path):
    def read_bytes(content, name="a.jsonl", **options):
        (tmp_path / name).write_bytes(content)
        return lines_of(tmp_path / name, **options)

    return read_bytes


PACKERS = {
    "plain": lambda content: content,
    "zstd": zstd,
    "gzip": gzip.compress,
    "zstd frames": lambda content: b"".join(zstd(content[i : i + 7]) for i in range(0, 70, 7)),
    "gzip members": lambda content: gzip.compress(content[:9]) + gzip.compress(content[9:]),
    "zstd skippable": lambda content: struct.pack("<II", 0x184D2A53, 3) + b"abc" + zstd(content),
    "zstd of unknown size": zstandard.ZstdCompressor(write_content_size=False).compress,
}


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS.keys())
def test_lines_are_those_of_the_text_however_it_is_packed(read, pack):
    content = b"first\nsecond \xe2\x80\xa8 still \x85\x0b\x0c\r second\n\nlast, no newline"
    assert len(content) <= 70
    lines, problems, raw = read(pack(content))
    assert lines == content.split(b"\n")
    assert problems == {}
    assert raw.bytes_read == len(pack(content))
    assert raw.sha256 == hashlib.sha256(pack(content)).hexdigest()


@settings(max_examples=60, deadline=None)
@given(
    content=st.binary(max_size=300).map(lambda b: b"x" + b.replace(b"\xff", b"\n")),
    read_bytes=st.integers(1, 40),
    compress=st.booleans(),
)
def test_piece_size_does_not_matter(tmp_path_factory, content, read_bytes, compress):
    path = tmp_path_factory.mktemp("piece") / "a.jsonl"
    path.write_bytes(zstd(content) if compress else content)
    with pytest.MonkeyPatch.context() as patch:
        # four bytes are the least that tells the compression
        patch.setattr(streams, "_READ_BYTES", max(read_bytes, 4))
        lines, problems, _ = lines_of(path)
    expected = content.split(b"\n")
    assert lines == (expected if expected[-1] else expected[:-1])
    assert problems == {}


def test_name_does_not_decide_the_compression(read):
    assert read(zstd(b"a\nb\n"), name="a.jsonl")[0] == [b"a", b"b"]
    assert read(gzip.compress(b"a\nb\n"), name="a.zst")[0] == [b"a", b"b"]


@pytest.mark.parametrize("pack", [zstd, gzip.compress], ids=["zstd", "gzip"])
def test_cut_off_input_keeps_its_whole_lines_and_says_what_is_lost(read, pack):
    rows = [os.urandom(30).hex().encode() for _ in range(20_000)]
    content = pack(b"\n".join(rows) + b"\n")
    lines, problems, raw = read(content[: len(content) // 2], name="a.jsonl.zst")
    assert problems == {"truncated_file": 1}
    assert 5_000 < len(lines) < 20_000
    assert lines == rows[: len(lines)]
    assert raw.bytes_read == len(content) // 2


def test_message_about_cut_off_input_has_line_and_byte(tmp_path):
    content = zstd(b"one\ntwo\n") + zstd(b"thr")[:-4]
    (tmp_path / "a.zst").write_bytes(content)
    problems = ProblemLog("a.zst")
    with RawInput(tmp_path / "a.zst") as raw:
        list(read_blocks(raw, problems))
    (example,) = problems.records()["truncated_file"].examples
    assert example.startswith("a.zst:3: ends inside a compressed frame, after byte ")
    assert "unfinished line of 3 bytes is lost" in example


def test_file_cut_between_frames_is_whole(read):
    assert read(zstd(b"one\n") + zstd(b"two\n"))[:2] == ([b"one", b"two"], {})


@pytest.mark.parametrize("pack", [zstd, gzip.compress], ids=["zstd", "gzip"])
def test_damage_keeps_the_lines_before_it_and_reads_the_file_to_its_end(read, pack):
    first, second = pack(b"one\ntwo\n"), bytearray(pack(b"three\nfour\n"))
    second[-1] ^= 0xFF  # part of the checksum
    content = first + bytes(second) + os.urandom(200_000)
    lines, problems, raw = read(content)
    assert lines[:2] == [b"one", b"two"]
    assert problems == {"damaged_compression": 1}
    assert raw.bytes_read == len(content)
    assert raw.sha256 == hashlib.sha256(content).hexdigest()


def test_garbage_after_the_last_frame_is_reported(read):
    lines, problems, _ = read(zstd(b"one\n") + b"garbage")
    assert (lines, problems) == ([b"one"], {"damaged_compression": 1})


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"", "truncated_file"), (b"plain text\n", "damaged_compression")],
    ids=["empty", "plain"],
)
def test_name_that_promises_compression_is_held_to_it(read, content, kind):
    lines, problems, _ = read(content, name="a.jsonl.zst")
    assert (lines, problems) == ([], {kind: 1})


def test_empty_plain_file_has_no_lines(read):
    assert read(b"")[:2] == ([], {})


def test_byte_order_mark_is_dropped_at_the_start_only(read):
    mark = b"\xef\xbb\xbf"
    assert read(mark + b"a\n" + mark + b"b\n")[0] == [b"a", mark + b"b"]


def test_line_over_the_limit_is_reported_and_the_next_is_read(read):
    content = b"short\n" + b"x" * 300_000 + b"\nafter\n" + b"y" * 101
    lines, problems, _ = read(content, max_line_bytes=100)
    assert lines == [b"short", b"after"]
    assert problems == {"line_too_long": 2}


def test_line_at_the_limit_is_kept(read):
    assert read(b"x" * 100 + b"\n", max_line_bytes=100)[:2] == ([b"x" * 100], {})


def test_huge_line_spans_many_pieces(read):
    line = os.urandom(8 << 20).replace(b"\n", b" ")
    long, end = read(zstd(line + b"\nend"))[0]
    assert long.size == len(line)
    assert end == b"end"


@pytest.mark.parametrize("pack", [zstd, bytes], ids=["zstd", "plain"])
def test_long_line_is_kept_in_a_file_while_it_is_looked_at(tmp_path, monkeypatch, pack):
    monkeypatch.setattr(streams, "LONG_LINE_BYTES", 1000)
    long = bytes(range(11, 256)) * 20
    (tmp_path / "a.jsonl").write_bytes(pack(b"a\n" + long + b"\nb\n" + long))
    seen = []
    with RawInput(tmp_path / "a.jsonl") as raw:
        for block in read_blocks(raw, ProblemLog("a.jsonl")):
            for number, line in enumerate(block.lines, block.first):
                seen.append((number, line if isinstance(line, bytes) else line.file.read()))
                if not isinstance(line, bytes):
                    line.file.seek(0)
    assert [number for number, _ in seen] == [1, 2, 3, 4]


def test_little_that_stands_for_much_is_decompressed_in_pieces(tmp_path):
    (tmp_path / "a.zst").write_bytes(zstd((b"x" * 127 + b"\n") * (2 << 20)))  # 256 MiB
    with RawInput(tmp_path / "a.zst") as raw:
        sizes = [sum(map(len, block.lines)) for block in read_blocks(raw, ProblemLog("a"))]
    assert sum(sizes) == 127 * (2 << 20)
    assert max(sizes) < 150 << 20


def test_standard_input_is_read_and_stays_open(monkeypatch):
    stdin = io.TextIOWrapper(io.BytesIO(zstd(b"a\nb\n")))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert lines_of(STDIN)[0] == [b"a", b"b"]
    assert not stdin.buffer.closed


def test_missing_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.jsonl - cannot be opened: No such file"):
        RawInput(tmp_path / "nowhere.jsonl")


def test_read_error_is_a_data_error_not_an_end(tmp_path):
    class FailingDisk(io.BytesIO):
        def read(self, size=-1):
            if self.tell():
                raise OSError(5, "Input/output error")
            return super().read(size)

    (tmp_path / "a.jsonl").write_bytes(b"")
    raw = RawInput(tmp_path / "a.jsonl")
    raw._stream = FailingDisk(b"a\n" * 100_000)
    with pytest.raises(DataError, match="cannot be read after byte 65536: Input/output error"):
        list(read_blocks(raw, ProblemLog("a.jsonl")))
