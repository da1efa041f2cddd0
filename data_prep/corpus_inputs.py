# SPDX-License-Identifier: Apache-2.0
"""A corpus as texts: files of The Pile's layout, or the documents of a data folder, decoded."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bt_megatron.config.schema import DataConfig
from bt_megatron.data.corpus import TokenCorpus
from bt_megatron.data.sources import open_corpus
from bt_megatron.errors import DataError
from data_prep.contamination import CorpusInput
from data_prep.documents import read_documents, whole_documents
from data_prep.inputs import name_shards
from data_prep.problems import ProblemLog
from data_prep.streams import STDIN, RawInput
from data_prep.tokenizer import read_tokenizer

_TOKENS_AT_ONCE = 1 << 18

OnBytes = Callable[[int], None]


def corpus_inputs(paths: Sequence[Path], *, tokenizer: Path | None) -> list[CorpusInput]:
    """Open the inputs of a corpus.

    Args:
        paths: files of text, or data folders.
        tokenizer: of data folders without a manifest.

    Raises:
        DataError: an input is missing, or a folder holds no data.
    """
    if STDIN in paths:
        raise DataError("- - standard input cannot be read again - give files or data folders")
    files = name_shards([path for path in paths if not path.is_dir()])
    inputs = [_text_input(name, path) for name, path in files.items()]
    for folder in (path for path in paths if path.is_dir()):
        inputs.append(_folder_input(folder, tokenizer))
    names = [item.name for item in inputs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{twice[0]} - two inputs have this name - rename one")
    return inputs


def _text_input(name: str, path: Path) -> CorpusInput:
    status = path.stat()

    def read(on_bytes: OnBytes) -> Iterator[str]:
        with RawInput(path) as raw:
            log = ProblemLog(raw.name)
            for document in whole_documents(read_documents(raw, log), log):
                yield document.text
                on_bytes(raw.bytes_read)

    stamp = f"{path.name} {status.st_size} {status.st_mtime_ns}"
    return CorpusInput(name, stamp, status.st_size, read)


def _folder_input(folder: Path, tokenizer: Path | None) -> CorpusInput:
    given = str(tokenizer) if tokenizer is not None else None
    corpus = open_corpus(DataConfig(path=str(folder), tokenizer=given))
    assert corpus.tokenizer_path is not None, "a folder is opened with its tokenizer"
    _, decoder = read_tokenizer(corpus.tokenizer_path)
    size = sum(path.stat().st_size for h in corpus.headers for path in h.bin_paths)

    def read(on_bytes: OnBytes) -> Iterator[str]:
        for first, last, tokens in _batches(corpus):
            ids = [corpus.document(i).tolist() for i in range(first, last)]
            yield from decoder.decode_batch(ids, skip_special_tokens=False)
            on_bytes(int(size * tokens / max(1, corpus.num_tokens)))

    return CorpusInput(folder.resolve().name, corpus.fingerprint, size, read)


def _batches(corpus: TokenCorpus) -> Iterator[tuple[int, int, int]]:
    """Yield runs of documents as (first, last + 1, tokens up to there)."""
    first, tokens, before = 0, 0, 0
    for i, length in enumerate(corpus.lengths):
        tokens += int(length)
        if tokens - before >= _TOKENS_AT_ONCE:
            yield first, i + 1, tokens
            first, before = i + 1, tokens
    if first < corpus.num_documents:
        yield first, corpus.num_documents, tokens
