# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.bench_tokenize`: text to token shards, ours and other tools.

From a .jsonl.zst to .bin and .idx, everything counted: interpreter, imports, tokenizer, checks and
checksums. CPU time is user and system time of all processes of a command; memory is the largest
peak of a process of it. What a command takes for two documents is measured too and given as its
start, because a corpus of some megabytes is far smaller than those that the tools are for.

    ours            data_prep tokenize
    hf              data_prep tokenize --engine tokenizers
    megatron        tools/preprocess_data.py of Megatron-LM, unmodified
    megatron-fast   tools/preprocess_data_fast.py --use-gigatoken of Megatron-LM, unmodified

The slow ones, hf and megatron, get every tenth document. The files that the tools write are
compared byte by byte. Tools take turns, so that all meet the same noise of the machine.
"""

import argparse
import io
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from itertools import islice
from pathlib import Path

import orjson
import zstandard

from bt_megatron.errors import BtError, DataError
from data_prep.report import say
from tools.benchmark_file import Row, write_benchmark

SLOW_SHARE = 10
TOKENIZER_CLASS = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}


@dataclass(frozen=True, slots=True)
class Corpus:
    """A file of documents, as every tool wants it."""

    packed: Path
    """.jsonl.zst"""
    plain: Path
    """The same without compression."""
    text_bytes: int
    documents: int


@dataclass(frozen=True, slots=True)
class Tool:
    """One way to make token shards."""

    name: str
    command: list[str]
    """`{packed}`, `{plain}` and `{out}` are filled in."""
    made: str
    """Prefix of .bin and .idx below `{out}`."""
    slow: bool
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Run:
    """What one run took."""

    cpu_s: float
    wall_s: float
    peak_memory_gib: float
    prefix: Path


def write_corpus(source: Path, folder: Path, *, every: int = 1, most: int | None = None) -> Corpus:
    """Write documents of a .jsonl.zst as a corpus, one at a time.

    What this process holds when it starts a tool would count as the tool's memory.

    Args:
        source: the documents.
        folder: to make.
        every: the first document of each so many is taken.
        most: at most so many are taken.

    Raises:
        DataError: the source cannot be read.
    """
    folder.mkdir()
    corpus = Corpus(folder / "corpus.jsonl.zst", folder / "corpus.jsonl", 0, 0)
    size = count = 0
    try:
        with (
            zstandard.open(source, "rb") as stream,
            corpus.plain.open("wb") as plain,
            zstandard.open(corpus.packed, "wb") as packed,
        ):
            for line in islice(io.BufferedReader(stream), 0, None, every):
                plain.write(line)
                packed.write(line)
                size += len(orjson.loads(line)["text"].encode())
                count += 1
                if count == most:
                    break
    except (OSError, ValueError, zstandard.ZstdError) as error:
        raise DataError(f"{source} - cannot be read: {error} - check the path") from error
    return replace(corpus, text_bytes=size, documents=count)


def list_tools(options: argparse.Namespace, folder: Path) -> list[Tool]:
    """Return the tools to measure; those of Megatron-LM if its sources are given."""
    ours = [sys.executable, "-m", "data_prep", "tokenize", "{packed}", "--out", "{out}"]
    ours += ["--tokenizer", str(options.tokenizer), "--workers", str(options.workers)]
    tools = [
        Tool("ours", ours, "corpus", slow=False),
        Tool("hf", [*ours, "--engine", "tokenizers"], "corpus", slow=True),
    ]
    if options.megatron is None:
        return tools
    model = folder / "tokenizer"
    model.mkdir()
    shutil.copy(options.tokenizer, model / "tokenizer.json")
    (model / "tokenizer_config.json").write_bytes(orjson.dumps(TOKENIZER_CLASS))
    given = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(model)]
    environment = {
        "PYTHONPATH": str(options.megatron.resolve()),
        "RAYON_NUM_THREADS": str(options.workers),
    }
    for name, script, source, extra in (
        ("megatron", "preprocess_data.py", "{plain}", ["--workers", str(options.workers)]),
        ("megatron-fast", "preprocess_data_fast.py", "{packed}", ["--use-gigatoken"]),
    ):
        path = options.megatron.resolve() / "tools" / script
        if not path.is_file():
            raise DataError(f"{path} - not found - give --megatron the root of its sources")
        head = [str(options.megatron_python or sys.executable), str(path), "--input", source]
        command = [*head, "--output-prefix", "{out}/corpus", *given, *extra]
        slow = name == "megatron"
        tools.append(Tool(name, command, "corpus_text_document", slow, environment))
    return tools


def run_once(tool: Tool, corpus: Corpus, out: Path) -> Run:
    """Run a tool into a new folder.

    Raises:
        DataError: it failed.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    names = {"packed": corpus.packed, "plain": corpus.plain, "out": out}
    words = [word.format(**names) for word in tool.command]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "true", **tool.environment}
    # A process of its own, so that the peak of its memory is not that of a command before.
    started = time.monotonic()
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen(words, stdout=printed, stderr=printed, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            printed.seek(0)
            last = printed.read().decode(errors="replace").strip().split("\n")[-1]
            raise DataError(f"{tool.name} - ended with {process.returncode} - {last}")
    return Run(_cpu_s(usage), time.monotonic() - started, usage.ru_maxrss / 2**20, out / tool.made)


def _cpu_s(usage: resource.struct_rusage) -> float:
    return usage.ru_utime + usage.ru_stime


def same_files(first: Path, second: Path) -> bool:
    """Compare the .bin and .idx of two shards."""
    return all(
        first.with_name(first.name + suffix).read_bytes()
        == second.with_name(second.name + suffix).read_bytes()
        for suffix in (".bin", ".idx")
    )


def summarise(
    tool: Tool, corpus: Corpus, runs: Sequence[Run], starts: Sequence[Run], *, identical: bool
) -> list[Row]:
    """Return the rows of a tool: medians of its runs."""
    megabytes = corpus.text_bytes / 1e6
    cpu = statistics.median(run.cpu_s for run in runs)
    start = statistics.median(run.cpu_s for run in starts)
    detail = {
        "text_mb": round(megabytes, 1),
        "documents": corpus.documents,
        "runs": len(runs),
        "cpu_s": [round(run.cpu_s, 2) for run in runs],
        "start_cpu_s": round(start, 2),
        "mb_per_cpu_s_after_start": round(megabytes / max(cpu - start, 1e-3), 2),
        "wall_mb_per_s": round(megabytes / statistics.median(run.wall_s for run in runs), 2),
        "identical_to_ours": identical,
    }
    case = f"data/tokenize/{tool.name}"
    memory = statistics.median(run.peak_memory_gib for run in runs)
    return [
        Row(
            case=case, metric="mb_per_cpu_s", value=round(megabytes / cpu, 2), unit="MB/CPU-s",
            detail=detail,
        ),
        Row(case=case, metric="peak_memory_gib", value=round(memory, 3), unit="GiB"),
    ]  # fmt: skip


def measure(options: argparse.Namespace, folder: Path) -> list[Row]:
    """Measure all tools in turns."""
    whole = write_corpus(options.corpus, folder / "all")
    part = write_corpus(options.corpus, folder / "part", every=SLOW_SHARE)
    tiny = write_corpus(options.corpus, folder / "tiny", most=2)
    tools = list_tools(options, folder)
    runs: dict[str, list[Run]] = {tool.name: [] for tool in tools}
    starts: dict[str, list[Run]] = {tool.name: [] for tool in tools}
    for turn in range(options.runs):
        for tool in tools:
            corpus = part if tool.slow else whole
            starts[tool.name].append(run_once(tool, tiny, folder / "out" / "start"))
            run = run_once(tool, corpus, folder / "out" / tool.name)
            runs[tool.name].append(run)
            rate = corpus.text_bytes / 1e6 / run.cpu_s
            say(
                f"{turn + 1}/{options.runs} {tool.name}: {run.cpu_s:.2f} CPU-s, {rate:.1f} MB/CPU-s"
            )
    ours = {False: runs["ours"][-1].prefix}
    ours[True] = run_once(tools[0], part, folder / "out" / "ours-part").prefix
    return [
        row
        for tool in tools
        for row in summarise(
            tool,
            part if tool.slow else whole,
            runs[tool.name],
            starts[tool.name],
            identical=same_files(runs[tool.name][-1].prefix, ours[tool.slow]),
        )
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table and write the benchmark file."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench_tokenize",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("corpus", type=Path, help=".jsonl.zst of about a hundred megabytes")
    parser.add_argument("--tokenizer", type=Path, required=True, help="a tokenizer.json")
    parser.add_argument("--megatron", type=Path, metavar="DIR", help="sources of Megatron-LM")
    parser.add_argument("--megatron-python", metavar="PYTHON", help="its interpreter")
    parser.add_argument("--workers", type=int, default=2, help="of every tool (default 2)")
    parser.add_argument("--runs", type=int, default=5, help="the median counts (default 5)")
    parser.add_argument("--benchmark", type=Path, default=Path("docs/benchmarks/data.json"))
    options = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory(prefix="bench-tokenize-") as folder:
            rows = measure(options, Path(folder))
        packages = {
            name: metadata.version(name)
            for name in ("fastokens", "gigatoken", "tokenizers")
            if any(metadata.distributions(name=name))
        }
        rows[0].detail["packages"] = packages
        write_benchmark(options.benchmark, rows)
    except BtError as error:
        say(f"error: {error}")
        return error.exit_code
    for row in rows:
        print(f"{row.case:28} {row.metric:16} {row.value:8} {row.unit}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
