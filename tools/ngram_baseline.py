# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.ngram_baseline RUN_CONFIG.yaml`: what counting alone reaches.

A unigram and a bigram model (`tools/ngram_model.py` has the formulas) of a run's
training documents, on exactly the validation targets that the run's model is
evaluated on: same samples, same mask. A model that has learned something is
below both lines in loss.png.

The context of a target is the token before it in its sample, pads left out;
the first token of a document follows the EOS of the one before. The smoothing
is fitted on every 20th training document, never on validation. A corpus beyond
--max-tokens is counted in documents spread evenly over it.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from rich.console import Console
from rich.progress import Progress, TaskID

from bt_megatron.config.arguments import add_run_arguments
from bt_megatron.config.load import load_run
from bt_megatron.config.schema import RunConfig
from bt_megatron.data.corpus import TokenCorpus
from bt_megatron.data.dataset import PackedDataset, documents_of_side
from bt_megatron.data.packing import Sample
from bt_megatron.data.sources import open_sources
from bt_megatron.data.token_bytes import token_byte_lengths
from bt_megatron.errors import BtError, DataError
from bt_megatron.observe.atomic_file import write_atomically
from bt_megatron.observe.run_folder import RunFolder
from tools.ngram_model import Ids, NgramModel, PairCounts, count_pairs, fit

SCHEMA = 1
HELD_OUT_EVERY = 20
MAX_TOKENS = 200_000_000
MAX_HELD_OUT_TOKENS = 2_000_000
PIECE_TOKENS = 4_000_000


@dataclass(slots=True)
class _Score:
    """Sums over the validation targets."""

    targets: int = 0
    target_bytes: int = 0
    unigram_nats: float = 0.0
    bigram_nats: float = 0.0


def measure_baselines(
    config: RunConfig, *, max_tokens: int = MAX_TOKENS, progress: Progress | None = None
) -> dict[str, Any]:
    """Count, fit and evaluate.

    Args:
        config: of the run.
        max_tokens: training tokens to count at most.
        progress: where to show how far it is.

    Returns:
        The contents of baselines.json; losses in nats per token. bits_per_byte
        is null for a corpus without a tokenizer.

    Raises:
        DataError: the data cannot be read, does not fit the model, or has fewer than two
            training documents.
    """
    if config.data.path is None:
        raise DataError(
            f"data.mixture: {len(config.data.mixture)} data folders, and counts are of one. Use "
            "files with one of them as data.path."
        )
    (source,) = open_sources(config)
    corpus = source.corpus
    block_length = config.model.block_length if config.model.is_block else 1
    validation = PackedDataset(
        corpus, config=config.data, block_length=block_length, split="validation"
    )
    documents = choose_documents(corpus, config, max_tokens=max_tokens)
    held_out = np.arange(len(documents)) % HELD_OUT_EVERY == 0
    vocab_size = config.model.vocab_size

    def count(chosen: Ids, name: str) -> PairCounts:
        return count_pairs(_pieces(corpus, chosen, name, progress), vocab_size=vocab_size)

    few = within_tokens(corpus, documents[held_out], MAX_HELD_OUT_TOKENS)
    fitted = fit(count(documents[~held_out], "counting"), count(few, "counting held-out"))
    everything = count(documents, "counting all")
    model = NgramModel(everything, addition=fitted.addition, discount=fitted.discount)
    score = evaluate(model, validation, config)
    return _report(model, score, everything) | {"validation_fingerprint": validation.fingerprint}


def choose_documents(corpus: TokenCorpus, config: RunConfig, *, max_tokens: int) -> Ids:
    """Return the training documents to count, ascending.

    Raises:
        DataError: there are fewer than two.
    """
    documents = documents_of_side(corpus, split="train", config=config.data)
    tokens = int(corpus.lengths[documents].sum(dtype=np.int64)) + len(documents)
    chosen = documents[:: max(1, math.ceil(tokens / max_tokens))]
    if len(chosen) < 2:
        raise DataError(
            f"{config.data.path}: {len(chosen)} training documents to count, and fitting the "
            "smoothing takes 2. Add documents or raise --max-tokens."
        )
    return chosen


def within_tokens(corpus: TokenCorpus, documents: Ids, limit: int) -> Ids:
    """Return the first documents that have `limit` tokens together; at least one."""
    ends = np.cumsum(corpus.lengths[documents], dtype=np.int64)
    return documents[: max(1, int(np.searchsorted(ends, limit, side="right")))]


def _pieces(
    corpus: TokenCorpus, documents: Ids, name: str, progress: Progress | None
) -> Iterator[tuple[Ids, Ids]]:
    """Yield contexts and tokens of documents, EOS included, a few million at a time."""
    eos = np.array([corpus.eos_id], dtype=np.int64)
    task = progress.add_task(name, total=len(documents)) if progress else TaskID(0)
    text, size = [eos], 0
    for number, document in enumerate(documents.tolist(), start=1):
        text += [corpus.document(document).astype(np.int64), eos]
        size += len(text[-2]) + 1
        if size >= PIECE_TOKENS or number == len(documents):
            stream = np.concatenate(text)
            yield stream[:-1], stream[1:]
            text, size = [eos], 0
            if progress:
                progress.update(task, completed=number)


def evaluate(model: NgramModel, validation: PackedDataset, config: RunConfig) -> _Score:
    """Sum the models' losses over the targets of the run's evaluation."""
    limit = config.evaluation.max_sequences
    count = len(validation) if limit is None else min(limit, len(validation))
    tokenizer = validation.corpus.tokenizer_path
    lengths = token_byte_lengths(tokenizer, config.model.vocab_size) if tokenizer else None
    score = _Score()
    for index in range(count):
        contexts, targets = context_and_target(
            validation[index], shift=config.model.target_shift, eos_id=validation.corpus.eos_id
        )
        score.targets += len(targets)
        score.target_bytes += int(lengths[targets].sum()) if lengths is not None else 0
        score.unigram_nats -= float(np.log(model.unigram(targets)).sum())
        score.bigram_nats -= float(np.log(model.bigram(contexts, targets)).sum())
    return score


def context_and_target(sample: Sample, *, shift: int, eos_id: int) -> tuple[Ids, Ids]:
    """Return the targets of a sample and the real token before each.

    Args:
        sample: [s] tokens and mask.
        shift: tokens at the start that nothing predicts: a block, or one (vanilla).
        eos_id: context of a target that no real token precedes.

    Returns:
        Contexts and targets, both [targets].
    """
    places = np.arange(len(sample.tokens))
    last_real = np.maximum.accumulate(np.where(sample.mask, places, -1))
    before = np.append(-1, last_real[:-1])  # [s] place of the real token before each
    is_target = sample.mask & (places >= shift)
    contexts = np.where(before >= 0, sample.tokens[before], eos_id)
    return contexts[is_target], sample.tokens[is_target]


def _report(model: NgramModel, score: _Score, counted: PairCounts) -> dict[str, Any]:
    """Return the contents of baselines.json."""

    def entry(nats: float, **smoothing: float) -> dict[str, Any]:
        bits = nats / math.log(2) / score.target_bytes if score.target_bytes else None
        return {"loss": nats / score.targets, "bits_per_byte": bits, "smoothing": smoothing}

    return {
        "schema": SCHEMA,
        "models": {
            "unigram": entry(score.unigram_nats, addition=model.addition),
            "bigram": entry(score.bigram_nats, addition=model.addition, discount=model.discount),
        },
        "targets": score.targets,
        "target_bytes": score.target_bytes,
        "training_tokens": int(counted.counts.sum()),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.ngram_baseline",
        description="Measure unigram and bigram losses on a run's validation targets.",
    )
    add_run_arguments(parser)
    parser.add_argument("--out", type=Path, help="default: baselines.json in the run's folder")
    parser.add_argument(
        "--max-tokens", type=int, default=MAX_TOKENS, help="training tokens to count"
    )
    arguments = parser.parse_args(argv)
    try:
        config = load_run(arguments.files, arguments.settings).config
        with Progress(console=Console(stderr=True)) as progress:
            report = measure_baselines(config, max_tokens=arguments.max_tokens, progress=progress)
        output = arguments.out or RunFolder(Path(config.run_dir)).baselines
        _write(output, report)
    except BtError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    for name, result in report["models"].items():
        bits = result["bits_per_byte"]
        shown = "n/a" if bits is None else f"{bits:.4f}"
        print(f"{name:<8} loss {result['loss']:.4f}  bits/byte {shown}")  # noqa: T201
    print(output)  # noqa: T201
    return 0


def _write(output: Path, report: dict[str, Any]) -> None:
    """Write the report.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, orjson.dumps(report, option=orjson.OPT_INDENT_2) + b"\n")
    except OSError as error:
        raise DataError(f"{output}: cannot be written ({error}). Pass --out FILE.") from error


if __name__ == "__main__":
    sys.exit(main())
