# SPDX-License-Identifier: Apache-2.0
"""One side of the split of a corpus, packed into samples."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bt_megatron.config.schema import DataConfig
from bt_megatron.data.corpus import TokenCorpus
from bt_megatron.data.drop_list import DropList, load_drop_list
from bt_megatron.data.packed_index import open_index, save_index
from bt_megatron.data.packing import PackedDocuments, PackingOptions, Sample, build_index
from bt_megatron.data.split import Split, documents_of_split
from bt_megatron.errors import DataError


class PackedDataset:
    """The samples that a run trains on, or is validated on.

    Attributes:
        corpus: all documents, of both sides of the split.
        split: which side this is.
        fingerprint: names the samples: the corpus, the packing and the split.
            Settings that change nothing (the block length where nothing is
            padded, say) are not part of it.
        is_mapped: whether the index of the packed stream was made before and is
            mapped; otherwise it was made now, in memory.
    """

    def __init__(
        self,
        corpus: TokenCorpus,
        *,
        config: DataConfig,
        block_length: int,
        split: Split = "train",
        indices: Path | None = None,
    ) -> None:
        """Split and pack the corpus; no token is read yet.

        Args:
            corpus: the documents.
            config: the data section of the run, of this corpus if it mixes several.
            block_length: k; 1 for a vanilla model.
            split: which side.
            indices: folder of saved indices; none: the index is made now.

        Raises:
            DataError: there is not one whole sample, or the sample is not whole blocks.
        """
        options = _packing_options(config, block_length=block_length)
        drop = _drop_list(corpus, config)
        self.corpus = corpus
        self.split = split
        self.fingerprint = _fingerprint(
            corpus, split=split, config=config, options=options, drop=drop
        )
        index = open_index(indices, self.fingerprint) if indices is not None else None
        self.is_mapped = index is not None
        if index is None:
            documents = documents_of_side(corpus, split=split, config=config)
            index = build_index(corpus, documents=documents, options=options)
        self._packed = PackedDocuments(corpus, index, options)
        if len(self._packed) == 0:
            raise DataError(_no_samples(self._packed, split=split, config=config))

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._packed)

    def __getitem__(self, index: int) -> Sample:
        """Return sample `index`, in the order of the documents.

        Raises:
            IndexError: there is no such sample.
        """
        return self._packed[index]

    def read_into(self, index: int, tokens: NDArray[np.int64], mask: NDArray[np.bool_]) -> None:
        """Write sample `index` into two arrays, [s] each.

        Raises:
            IndexError: there is no such sample.
        """
        self._packed.read_into(index, tokens, mask)

    def save(self, indices: Path) -> Path:
        """Save the index, for others to map; return its folder."""
        return save_index(self._packed.index, indices, self.fingerprint)

    @property
    def sample_length(self) -> int:
        """s, tokens of a sample."""
        return self._packed.options.sample_length

    @property
    def num_documents(self) -> int:
        """Documents on this side of the split."""
        return self._packed.num_documents

    @property
    def num_tokens(self) -> int:
        """Tokens of this side, EOS and pads included."""
        return self._packed.num_tokens


def documents_of_side(
    corpus: TokenCorpus, *, split: Split, config: DataConfig
) -> NDArray[np.int64]:
    """List the documents of one side of the split, without those of data.drop, ascending.

    Raises:
        DataError: the corpus cannot be split, or data.drop is a list of another one.
    """
    drop = _drop_list(corpus, config)
    documents = documents_of_split(
        corpus.num_documents, split=split, fraction=config.validation_fraction, seed=config.seed
    )
    if drop is None:
        return documents
    return documents[~np.isin(documents, drop.documents, assume_unique=True)]


def _drop_list(corpus: TokenCorpus, config: DataConfig) -> DropList | None:
    if config.drop is None:
        return None
    return load_drop_list(Path(config.drop), corpus_fingerprint=corpus.fingerprint)


def _packing_options(config: DataConfig, *, block_length: int) -> PackingOptions:
    return PackingOptions(
        sample_length=config.seq_length,
        block_length=block_length,
        random_left_padding=config.random_left_padding,
        pad_to_block_boundary=config.pad_to_block_boundary,
        padding_seed=config.padding_seed,
        rows=config.packing == "rows",
    )


def _no_samples(packed: PackedDocuments, *, split: Split, config: DataConfig) -> str:
    if split == "validation" and packed.num_documents == 0:
        return (
            "data.validation_fraction - 0 of the documents are held out, so there is no "
            "validation split - set data.validation_fraction above 0"
        )
    remedy = "lower data.seq_length or add text"
    if split == "validation":
        remedy = "raise data.validation_fraction, lower data.seq_length or add text"
    return (
        f"{config.path} - 0 whole samples of {config.seq_length} tokens in {packed.num_tokens} "
        f"tokens ({packed.num_documents} {split} documents) - {remedy}"
    )


def _fingerprint(
    corpus: TokenCorpus,
    *,
    split: Split,
    config: DataConfig,
    options: PackingOptions,
    drop: DropList | None,
) -> str:
    left = options.random_left_padding and options.block_length > 1
    right = options.pad_to_block_boundary and options.block_length > 1
    parts: dict[str, Any] = {
        "format": 1,
        "corpus": corpus.fingerprint,
        "sample_length": options.sample_length,
        "block_length": options.block_length if left or right else None,
        "left_padding_seed": options.padding_seed if left else None,
        "pad_to_block_boundary": right,
        "split": split,
        "validation_fraction": config.validation_fraction,
        "split_seed": config.seed if config.validation_fraction > 0 else None,
    }
    if options.rows:
        parts["rows"] = True
    if drop is not None:
        parts["drop"] = drop.fingerprint
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
