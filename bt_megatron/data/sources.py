# SPDX-License-Identifier: Apache-2.0
"""The data folders of a run, opened: one, or those of a mixture.

A folder has the manifest.json of `python -m data_prep tokenize`, or holds .bin
and .idx files that somebody published: then `data.tokenizer` says what their
ids mean. No torch here; `data_prep index` and the trainer open the same.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from bt_megatron.config.schema import DataConfig, RunConfig
from bt_megatron.data.corpus import TokenCorpus
from bt_megatron.data.dataset import PackedDataset
from bt_megatron.data.manifest import FILE_NAME
from bt_megatron.data.mixture import Subset
from bt_megatron.data.split import Split
from bt_megatron.data.vocabulary import read_vocabulary
from bt_megatron.errors import DataError


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """One data folder of a run."""

    name: str
    """Of the subset; `all` for a run with a single folder."""
    config: DataConfig
    """The data section as if this folder were the only one."""
    corpus: TokenCorpus
    weight: float = 1.0
    max_epochs: float | None = None

    @property
    def indices(self) -> Path:
        """Folder of the saved indices."""
        assert self.config.path is not None, "a source has a folder"
        return Path(self.config.index_dir or Path(self.config.path) / "packed")

    def subset(self, *, block_length: int, split: Split) -> Subset:
        """Pack one side of the split, or map the index that was saved.

        Raises:
            DataError: there is not one whole sample, or a file is damaged.
        """
        dataset = PackedDataset(
            self.corpus,
            config=self.config,
            block_length=block_length,
            split=split,
            indices=self.indices,
        )
        return Subset(
            name=self.name, dataset=dataset, weight=self.weight, max_epochs=self.max_epochs
        )


def open_sources(config: RunConfig) -> list[Source]:
    """Open the data folders of a run; no token is read.

    Raises:
        DataError: a folder is missing or incomplete, its ids do not fit the model, or the ids of
            two folders do not mean the same.
    """
    data = config.data
    if data.path is not None:
        sources = [Source("all", data, open_corpus(data))]
    else:
        sources = []
        for name, part in data.mixture.items():
            own = dataclasses.replace(data, path=part.path, drop=part.drop, mixture={})
            sources.append(Source(name, own, open_corpus(own), part.weight, part.max_epochs))
    for source in sources:
        if source.corpus.vocab_size > config.model.vocab_size:
            raise DataError(
                f"{source.config.path}: its tokenizer has {source.corpus.vocab_size} ids, "
                f"model.vocab_size is {config.model.vocab_size}. Use --set "
                f"model.vocab_size={source.corpus.vocab_size} or more."
            )
    _require_same_ids(sources)
    return sources


def open_corpus(data: DataConfig) -> TokenCorpus:
    """Open the folder `data.path`.

    Raises:
        DataError: it is missing or incomplete, or has no manifest and `data.tokenizer` is not
            set.
    """
    assert data.path is not None, "rules.py: a run without data.path has data.mixture"
    folder = Path(data.path)
    prefixes = [] if (folder / FILE_NAME).exists() else published_shards(folder)
    if not prefixes:
        return TokenCorpus.open(folder)  # says what is missing, if something is
    if data.tokenizer is None:
        raise DataError(
            f"{folder} - holds {prefixes[0].name}.idx and no {FILE_NAME}, so it does not say what "
            "its ids mean - set data.tokenizer to the tokenizer.json that made them"
        )
    tokenizer = Path(data.tokenizer)
    vocabulary = read_vocabulary(tokenizer)
    if data.eos_token not in vocabulary.ids:
        raise DataError(
            f"data.eos_token - {data.eos_token!r} is none of the {len(vocabulary.ids)} tokens of "
            f"{tokenizer} - set it to the token that ends a document"
        )
    return TokenCorpus.from_shards(
        prefixes,
        eos_id=vocabulary.ids[data.eos_token],
        vocab_size=vocabulary.size,
        tokenizer_path=tokenizer,
        by_sequence=data.packing == "rows",
    )


def published_shards(folder: Path) -> list[Path]:
    """Return the prefixes of the .idx files of a folder without a manifest, by name.

    Raises:
        DataError: the folder is one that `data_prep tokenize` has not finished.
    """
    unfinished = sorted(folder.glob("*.shard.json"))
    if unfinished:
        raise DataError(
            f"{folder} - holds {unfinished[0].name} and no {FILE_NAME}: `python -m data_prep "
            "tokenize` was interrupted - run it again"
        )
    return [path.with_name(path.name.removesuffix(".idx")) for path in sorted(folder.glob("*.idx"))]


def _require_same_ids(sources: Sequence[Source]) -> None:
    """Refuse a mixture of folders whose ids do not mean the same."""
    first = sources[0]
    if len(sources) == 1:
        return
    digests = {}
    for source in sources:
        path = source.corpus.tokenizer_path
        digests[source.name] = (
            source.corpus.eos_id,
            read_vocabulary(path).digest if path is not None else None,
        )
    for source in sources[1:]:
        if digests[source.name] != digests[first.name]:
            raise DataError(
                f"data.mixture.{source.name}.path - the ids of {source.config.path} (EOS "
                f"{source.corpus.eos_id}, {source.corpus.vocab_size} ids) mean other tokens than "
                f"those of {first.config.path} (EOS {first.corpus.eos_id}, "
                f"{first.corpus.vocab_size} ids) - tokenize both with the same tokenizer.json"
            )
