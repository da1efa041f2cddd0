# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.bench_loading`: how fast batches are read, indexed and begun.

    data/load/memmap       `data.loader=memmap`, read ahead by a thread
    data/load/dali         `data.loader=dali`, where NVIDIA DALI is installed
    data/load/dataloader   torch's DataLoader over the same samples, in the same order
    data/index             packing 10 million documents, saved
    data/start             from nothing open to the first batch, at the first step and in the
                           fourth epoch

One process; the documents are random tokens, as long on average as The Pile's. On a GPU, time
ends when the batch is there. The figure of a loader is the median of the repeats.
"""

import argparse
import functools
import importlib.util
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bt_megatron.config.schema import BatchConfig, DataConfig
from bt_megatron.data.batches import MicroBatch, TrainingBatches, build_micro_batch
from bt_megatron.data.corpus import TokenCorpus
from bt_megatron.data.dali import DaliSteps
from bt_megatron.data.dataset import PackedDataset
from bt_megatron.data.device_copy import Sender, SentBatches
from bt_megatron.data.index import index_bytes
from bt_megatron.data.mixture import Mixture
from bt_megatron.data.prefetch import PrefetchedBatches
from bt_megatron.errors import BtError
from tools.benchmark_file import Row, write_benchmark

SEQ_LENGTH, BLOCK_LENGTH = 2048, 4
MEAN_TOKENS = 1_500
"""Of a document: 5.91 KiB (The Pile, table 1) at about four bytes a token."""
INDEX_MEAN_TOKENS = 64
"""Of a document where the index is measured, which does not look at tokens: a small file."""
BATCH = BatchConfig(global_batch_size=256, micro_batch_size=16)
METRICS = {"tokens_per_s": "tokens/s", "tokens_per_cpu_s": "tokens/CPU-s"}
WARM_UP = 2
WORKERS = (0, 2)
_WORKER_TIMEOUT_S = 120

Steps = Callable[[], Iterator[SentBatches]]


class SampleDataset(Dataset[tuple[Tensor, Tensor]]):
    """The samples of a mixture for torch's DataLoader, by subset and place in it."""

    def __init__(self, mixture: Mixture) -> None:
        """Take the datasets."""
        self._datasets = [subset.dataset for subset in mixture.subsets]

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return tokens and mask, [s] each."""
        source, place = key
        sample = self._datasets[source][place]
        return torch.from_numpy(sample.tokens), torch.from_numpy(sample.mask)


def keys_of(batches: TrainingBatches, *, steps: int) -> Iterator[list[tuple[int, int]]]:
    """Yield the keys of each micro-batch of the first steps."""
    for step in range(steps):
        located = batches.samples(step)
        for source, place in zip(located.source.tolist(), located.place.tolist(), strict=True):
            yield list(zip(source, place, strict=True))


def loaders(batches: TrainingBatches, *, steps: int) -> dict[str, Steps]:
    """Return the ways to read `steps` steps from the first on, by case and detail."""

    def ahead(read: Callable[[int], SentBatches]) -> Iterator[SentBatches]:
        with PrefetchedBatches(read, first_step=0) as prefetched:
            for _ in range(steps):
                yield next(prefetched)

    def memmap() -> Iterator[SentBatches]:
        sender = Sender()
        return ahead(lambda step: sender.send(batches.micro_batches(step)))

    def torch_loader(workers: int) -> Iterator[SentBatches]:
        micro_batches = len(batches.positions(0))
        loader = DataLoader(
            SampleDataset(batches.mixture),
            batch_sampler=keys_of(batches, steps=steps),  # type: ignore[arg-type]
            num_workers=workers,
            timeout=_WORKER_TIMEOUT_S if workers else 0,
            pin_memory=torch.cuda.is_available(),
        )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        ready: list[MicroBatch] = []
        for tokens, mask in loader:
            batch = build_micro_batch(tokens, mask, target_shift=batches.target_shift)
            ready.append(batch.to(device))
            if len(ready) == micro_batches:
                yield SentBatches(tuple(ready), None)
                ready = []

    ways: dict[str, Steps] = {"memmap": memmap}
    for workers in WORKERS:
        ways[f"dataloader {workers}"] = functools.partial(torch_loader, workers)
    if importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"):
        # Last: workers that are forked beside DALI's threads may wait for ever for a lock.
        ways["dali"] = lambda: ahead(DaliSteps(batches, first_step=0).read)
    return ways


def measure(way: Steps, *, tokens_per_step: int) -> tuple[float, float]:
    """Return tokens per second and per CPU-second of the steps after the first ones."""
    iterator = way()
    for _ in range(WARM_UP):
        next(iterator).receive()
    _wait()
    started, cpu_started = time.perf_counter(), _cpu_seconds()
    count = 0
    for sent in iterator:
        sent.receive()
        count += 1
    _wait()
    tokens = count * tokens_per_step
    return (
        tokens / (time.perf_counter() - started),
        tokens / (_cpu_seconds() - cpu_started),
    )


def load_rows(folder: Path, *, documents: int, steps: int, repeats: int) -> list[Row]:
    """Measure every way to read the same steps."""
    corpus = make_corpus(folder / "load", documents=documents, mean_tokens=MEAN_TOKENS)
    dataset = PackedDataset(corpus, config=_data(folder), block_length=BLOCK_LENGTH)
    batches = _training(dataset)
    tokens = BATCH.global_batch_size * SEQ_LENGTH
    rows = []
    for name, way in loaders(batches, steps=steps + WARM_UP).items():
        case, *workers = name.split()
        figures = [measure(way, tokens_per_step=tokens) for _ in range(repeats)]
        detail: dict[str, Any] = {"steps": steps, "tokens_per_step": tokens}
        if workers:
            detail["workers"] = int(workers[0])
        for metric, values in zip(METRICS, zip(*figures, strict=True), strict=True):
            row = Row(
                case=f"data/load/{case}",
                metric=metric,
                value=statistics.median(values),
                unit=METRICS[metric],
                detail=detail | {"repeats": [round(value) for value in values]},
            )
            rows.append(row)
        wall, cpu = (row.value / 1e6 for row in rows[-2:])
        _say(f"{name:<14}{wall:8.1f} M tokens/s, {cpu:.1f} M tokens/CPU-s")
    return rows


def index_rows(folder: Path, *, documents: int) -> list[Row]:
    """Measure packing and saving, and starting with the saved index."""
    make_corpus(folder / "index", documents=documents, mean_tokens=INDEX_MEAN_TOKENS)
    config, indices = _data(folder), folder / "packed"
    started, cpu_started = time.perf_counter(), _cpu_seconds()
    corpus = TokenCorpus.from_shards([folder / "index"], eos_id=0, vocab_size=50_304)
    made = PackedDataset(corpus, config=config, block_length=BLOCK_LENGTH)
    made.save(indices)
    seconds, cpu = time.perf_counter() - started, _cpu_seconds() - cpu_started
    _say(f"index         {seconds:8.2f} s, {cpu:.2f} CPU-s for {documents:,} documents")
    detail = {"documents": documents, "mean_tokens": INDEX_MEAN_TOKENS}
    rows = [Row(case="data/index", metric="seconds", value=seconds, unit="s", detail=detail)]
    rows.append(Row(case="data/index", metric="cpu_seconds", value=cpu, unit="s", detail=detail))
    late = 3 * len(made) // BATCH.global_batch_size
    for step in (0, late):
        started = time.perf_counter()
        corpus = TokenCorpus.from_shards([folder / "index"], eos_id=0, vocab_size=50_304)
        dataset = PackedDataset(corpus, config=config, block_length=BLOCK_LENGTH, indices=indices)
        assert dataset.is_mapped, "it was saved above"
        _training(dataset).micro_batches(step)
        seconds = time.perf_counter() - started
        rows.append(
            Row(
                case="data/start",
                metric="seconds",
                value=seconds,
                unit="s",
                detail=detail | {"step": step},
            )
        )
        _say(f"start         {seconds:8.2f} s at step {step:,}")
    return rows


def make_corpus(prefix: Path, *, documents: int, mean_tokens: int) -> TokenCorpus:
    """Write a shard of random documents.

    Args:
        prefix: path without .bin or .idx.
        documents: how many.
        mean_tokens: of a document.
    """
    draw = np.random.default_rng(0)
    lengths = draw.geometric(1 / mean_tokens, size=documents).astype(np.int32)
    index = index_bytes(lengths, np.dtype("uint16"))
    prefix.with_name(prefix.name + ".idx").write_bytes(index)
    size = int(lengths.sum(dtype=np.int64))
    ids = draw.integers(1, 50_277, size=min(1 << 24, size), dtype=np.uint16)
    with prefix.with_name(prefix.name + ".bin").open("wb") as stream:
        for start in range(0, size, len(ids)):
            stream.write(ids[: size - start].tobytes())
    return TokenCorpus.from_shards([prefix], eos_id=0, vocab_size=50_304)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write docs/benchmarks/loading.json.

    Returns:
        Exit code.
    """
    parser = argparse.ArgumentParser(prog="python -m tools.bench_loading", description=__doc__)
    parser.add_argument("--documents", type=int, default=200_000, help="of the loaders")
    parser.add_argument("--index-documents", type=int, default=10_000_000)
    parser.add_argument("--steps", type=int, default=30, help="measured in each repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/loading.json"))
    options = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory() as folder:
            rows = load_rows(
                Path(folder),
                documents=options.documents,
                steps=options.steps,
                repeats=options.repeats,
            )
            rows += index_rows(Path(folder), documents=options.index_documents)
        write_benchmark(options.out, rows)
    except BtError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


def _training(dataset: PackedDataset) -> TrainingBatches:
    mixture = Mixture.of(dataset, seed=42)
    return TrainingBatches(mixture, batch=BATCH, dp_rank=0, dp_size=1, target_shift=BLOCK_LENGTH)


def _data(folder: Path) -> DataConfig:
    return DataConfig(path=str(folder), seq_length=SEQ_LENGTH)


def _cpu_seconds() -> float:
    """Return what this process and its ended children have used."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
