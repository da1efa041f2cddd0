# SPDX-License-Identifier: Apache-2.0
"""`data_prep tokenize` killed, out of disk, started twice: what it leaves is whole or absent.

All are real: SIGKILL, a limit of the kernel on file sizes, a file system of a few kilobytes.
"""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest
import zstandard

from bt_megatron.data.manifest import load_manifest
from bt_megatron.errors import DataError
from data_prep.folder_lock import lock_folder
from data_prep.train_tokenizer import train_tokenizer
from data_prep.verify import find_faults

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "data_prep/sample/state-of-the-union-and-moby-dick.jsonl.zst"
ENVIRONMENT = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Three inputs, one of them cut off and with a bad line, and a tokenizer beside them."""
    folder = tmp_path_factory.mktemp("inputs")
    train_tokenizer([SAMPLE], vocab_size=600, out=folder / "tokenizer.json")
    with zstandard.open(SAMPLE, "rb") as stream:
        lines = stream.read().split(b"\n")
    for name, rows in (("a", lines[:20]), ("b", lines[20:60]), ("c", [b"broken", *lines[60:70]])):
        content = zstandard.ZstdCompressor().compress(b"\n".join(rows))
        cut = 50_000 if name == "c" else 0
        (folder / f"{name}.jsonl.zst").write_bytes(content[: len(content) - cut])
    return sorted(folder.glob("*.zst"))


def command(inputs, out, *, standard_input=False):
    given = ["-"] if standard_input else [str(path) for path in inputs]
    tokenizer = inputs[0].with_name("tokenizer.json")
    options = ["--tokenizer", str(tokenizer), "--out", str(out), "--workers", "2"]
    return [sys.executable, "-m", "data_prep", "tokenize", *given, *options]


def run(inputs, out, **how):
    return subprocess.run(
        command(inputs, out), capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT, **how
    )


def contents(folder):
    """Bytes by file name, without those that hold times and process numbers."""
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if not path.name.endswith((".shard.json", ".lock"))
    }


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory):
    """What an uninterrupted run makes, and how long it takes."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    started = time.monotonic()
    assert run(inputs, out).returncode == 0
    return contents(out), time.monotonic() - started


def check_partial(out):
    """What has its final name is whole."""
    if not out.exists():
        return
    for record in out.glob("*.shard.json"):
        name = record.name.removesuffix(".shard.json")
        assert (out / f"{name}.bin").exists()
        assert (out / f"{name}.idx").exists()
    if (out / "manifest.json").exists():
        assert list(find_faults(out, on_bytes=lambda size: None)) == []


def test_killed_again_and_again_it_ends_with_the_same_bytes(inputs, undisturbed, tmp_path):
    expected, seconds = undisturbed
    moments = random.Random(0)
    for attempt in range(12):
        process = subprocess.Popen(
            command(inputs, tmp_path / "out"),
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
            env=ENVIRONMENT,
            start_new_session=True,
        )
        # From the import of the first module to the rename of the last file; later and later.
        time.sleep(seconds * moments.uniform(0.3, 0.6 + attempt / 6))
        with_workers = process.pid
        if process.poll() is None:
            os.killpg(with_workers, signal.SIGKILL)
        if process.wait() == 0:
            break
        check_partial(tmp_path / "out")
    assert process.returncode == 0
    assert contents(tmp_path / "out") == expected
    assert load_manifest(tmp_path / "out").problems == {"invalid_json": 1, "truncated_file": 1}


def wait_for_lock(out, seconds=30):
    for _ in range(seconds * 20):
        try:
            with lock_folder(out):
                return
        except DataError:
            time.sleep(0.05)


@pytest.mark.parametrize("moment", ["a.bin.tmp", "a.shard.json", "manifest.json"])
def test_parent_killed_at_a_moment_takes_its_workers_along(inputs, undisturbed, tmp_path, moment):
    out = tmp_path / "out"
    process = subprocess.Popen(
        command(inputs, out), stderr=subprocess.DEVNULL, cwd=ROOT, env=ENVIRONMENT
    )
    while not (out / moment).exists() and process.poll() is None:
        time.sleep(0.0005)
    process.kill()
    process.wait()
    check_partial(out)
    wait_for_lock(out)  # which workers hold until they have ended, at once
    again = run(inputs, out)
    assert again.returncode == 0, again.stderr
    assert contents(out) == undisturbed[0]


@pytest.mark.parametrize("limit", [20_000, 400_000], ids=["nothing", "not for ids"])
def test_no_room_for_a_file_stops_with_a_message_and_goes_on_later(
    inputs, undisturbed, tmp_path, limit
):
    def lower_limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    stopped = run(inputs, tmp_path / "out", preexec_fn=lower_limit)
    assert stopped.returncode == DataError.exit_code
    last = stopped.stderr.strip().split("\n")[-1]
    assert last.startswith(f"error: {tmp_path}/out")
    assert "File too large" in last
    assert "run the same command again" in last
    assert "Traceback" not in stopped.stderr
    check_partial(tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.bin.tmp"))
    assert run(inputs, tmp_path / "out").returncode == 0
    assert contents(tmp_path / "out") == undisturbed[0]


def can_mount():
    probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    return shutil.which("unshare") and subprocess.run(probe, capture_output=True).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="this machine lets nobody mount a file system")
def test_full_disk_stops_with_a_message(inputs, tmp_path):
    script = 'mount -t tmpfs -o size=300k none "$0" && exec "$@"'
    words = [
        "unshare",
        "-rm",
        "sh",
        "-c",
        script,
        str(tmp_path),
        *command(inputs, tmp_path / "out"),
    ]
    stopped = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT)
    assert stopped.returncode == DataError.exit_code
    last = stopped.stderr.strip().split("\n")[-1]
    assert last.startswith(f"error: {tmp_path}/out/")
    assert "No space left on device" in last
    assert "Traceback" not in stopped.stderr


def test_second_run_into_a_folder_is_refused(inputs, tmp_path):
    first = subprocess.Popen(
        command(inputs, tmp_path / "out", standard_input=True),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env=ENVIRONMENT,
    )
    while b"to tokenize" not in first.stderr.readline():
        pass
    second = run(inputs, tmp_path / "out")
    assert second.returncode == DataError.exit_code
    assert f"is being written by another run ({os.uname().nodename}, process {first.pid})" in (
        second.stderr
    )
    first.stdin.write(b'{"text": "and the first one goes on"}\n')
    first.communicate()
    assert first.returncode == 0
    assert load_manifest(tmp_path / "out").documents == 1


def test_memory_does_not_grow_with_a_document(inputs, tmp_path):
    """One line of 250 MB, which would take a gigabyte and more if it were held."""
    with zstandard.open(inputs[0], "rb") as stream:
        text = orjson.loads(stream.read().split(b"\n")[0])["text"]
    escaped = orjson.dumps(text + "\n")[1:-1]
    count = 250_000_000 // len(escaped)
    with zstandard.open(tmp_path / "long.jsonl.zst", "wb") as stream:
        stream.write(b'{"meta": {}, "text": "')
        for _ in range(count):
            stream.write(escaped)
        stream.write(b'"}\n')
    words = [sys.executable, "-m", "data_prep", "tokenize", str(tmp_path / "long.jsonl.zst")]
    words += ["--tokenizer", str(inputs[0].with_name("tokenizer.json"))]
    words += ["--out", str(tmp_path / "out")]
    # A new process begins with the memory of who starts it: this one, which is small.
    measure = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", measure, *words],
        cwd=ROOT,
        env=ENVIRONMENT,
        check=True,
        stdout=subprocess.PIPE,
    )
    assert int(done.stdout) * 1024 < 500_000_000
    (shard,) = load_manifest(tmp_path / "out").shards
    assert (shard.documents, shard.text_bytes) == (1, count * len((text + "\n").encode()))
