# SPDX-License-Identifier: Apache-2.0
"""Byte-level BPE trained on the inputs, built like GPT-NeoX's tokenizer.

NFC, then GPT-2's splitting of words into bytes; id 0 is `<|endoftext|>`, id 1
`<|padding|>`, then the 256 bytes, then the merges. The same texts in the same
order give the same file.
"""

from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

from bt_megatron.data.manifest import ProblemRecord
from bt_megatron.errors import DataError
from data_prep.documents import read_documents
from data_prep.inputs import check_inputs, total_size
from data_prep.problems import ProblemLog
from data_prep.progress import ByteProgress
from data_prep.report import describe_problems, say
from data_prep.streams import RawInput

SPECIAL_TOKENS = ("<|endoftext|>", "<|padding|>")
SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + 256


def train_tokenizer(
    inputs: list[Path], *, vocab_size: int, out: Path, strict: bool = False
) -> Tokenizer:
    """Train a tokenizer and write it to a file, whole or not at all.

    Args:
        inputs: files in The Pile's layout, or `-` alone.
        vocab_size: entries, special tokens and bytes included.
        out: the tokenizer.json to write.
        strict: stop at the first problem of an input.

    Returns:
        The tokenizer. Its vocabulary is smaller than asked, with a warning,
        if the texts have no more pairs to merge.

    Raises:
        DataError: the size is too small, an input cannot be read, has a
            problem and strict is set, or no text was found.
    """
    _check(inputs, vocab_size, out)
    tokenizer = _untrained()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = _Texts(inputs, strict=strict)
    with ByteProgress("read", total_bytes=total_size(inputs)) as progress:
        tokenizer.train_from_iterator(texts.read(progress), trainer)
    for line in describe_problems(texts.problems):
        say(line)
    if not texts.count:
        raise DataError(f"{inputs[0]} - no text to train on among {len(inputs)} inputs - check it")
    _save(tokenizer, out)
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    if size < vocab_size:
        say(
            f"WARNING {out}: asked for {vocab_size} entries, made {size}, because "
            f"{texts.count} texts have no more pairs to merge"
        )
    say(f"{out}: {size} entries from {texts.count:,} texts")
    return tokenizer


class _Texts:
    """The texts of all inputs in order, with progress, and their problems afterwards."""

    def __init__(self, inputs: list[Path], *, strict: bool) -> None:
        self.count = 0
        self.problems: list[dict[str, ProblemRecord]] = []
        self._inputs = inputs
        self._strict = strict

    def read(self, progress: ByteProgress) -> Iterator[str]:
        done = 0
        for path in self._inputs:
            log = ProblemLog(path.name, strict=self._strict)
            with RawInput(path) as raw:
                for document in read_documents(raw, log):
                    self.count += not document.more
                    progress.advance_to(done + raw.bytes_read, f"{self.count:,} texts")
                    yield document.text
                done += raw.bytes_read
            self.problems.append(log.records())
        progress.begin_stage(f"merge the pairs of {self.count:,} texts")


def _check(inputs: list[Path], vocab_size: int, out: Path) -> None:
    check_inputs(inputs)
    if vocab_size < SMALLEST_VOCABULARY:
        raise DataError(
            f"--vocab-size - {vocab_size} entries are fewer than the {SMALLEST_VOCABULARY} of "
            f"special tokens and bytes - use {SMALLEST_VOCABULARY} or more"
        )
    if out.is_dir():
        raise DataError(f"{out} - is a folder, expected a file - use --out {out}/tokenizer.json")


def _untrained() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _save(tokenizer: Tokenizer, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(out.name + ".tmp")
    temporary.write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
    temporary.replace(out)
