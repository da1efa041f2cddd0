# SPDX-License-Identifier: Apache-2.0
"""Documents laid back to back and cut into samples of whole blocks.

The packed stream is never written: document j of it is
[left pads][tokens][EOS][right pads], and sample i is the positions
[i*s, (i+1)*s) of the stream, found by binary search. The pad id is the EOS id,
as in the reference (custom_dataset/tokenized_corpus.py). Unlike there, the EOS
of every document is real (mask 1), also where it closes a block.

Rows that were packed before (the preshuffled sets of Pythia: rows of 2,049 ids
with EOS inside) are not packed again: sample i is the first s ids of row i.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bt_megatron.data.corpus import TokenCorpus
from bt_megatron.data.packed_index import PackedIndex
from bt_megatron.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class PackingOptions:
    """How documents are laid out in the stream."""

    sample_length: int
    """s, tokens per sample; a whole number of blocks."""
    block_length: int = 1
    """k, tokens per block; 1 for a model without blocks."""
    random_left_padding: bool = False
    """Put 0 to k-1 pads in front of each document."""
    pad_to_block_boundary: bool = False
    """Fill the last block of each document with pads."""
    padding_seed: int = 42
    """Seed of the left padding lengths."""
    rows: bool = False
    """Each document is a packed row: one sample, to which nothing is added."""

    def __post_init__(self) -> None:
        left_over = self.sample_length % self.block_length
        if left_over:
            down = self.sample_length - left_over
            raise DataError(
                f"data.seq_length - {self.sample_length} tokens are not whole blocks of "
                f"{self.block_length} - set data.seq_length to {down + self.block_length}"
            )


@dataclass(frozen=True, slots=True)
class Sample:
    """One sequence of the stream."""

    tokens: NDArray[np.int64]
    """[s] token ids; pads have the EOS id."""
    mask: NDArray[np.bool_]
    """[s] true on tokens and on EOS, false on pads."""


def left_pad_lengths(num_documents: int, options: PackingOptions) -> NDArray[np.int16]:
    """Draw how many pads stand in front of each document of the whole corpus.

    Drawn in one go for all documents, before any split, with the generator
    and the type of the reference (SPEC: numpy RandomState, int16), so that
    the same seed gives the same stream as there.

    Args:
        num_documents: documents of the whole corpus.
        options: the packing; all lengths are 0 without random_left_padding and for rows.

    Returns:
        [num_documents] lengths in [0, k).
    """
    if not options.random_left_padding or options.rows:
        return np.zeros(num_documents, dtype=np.int16)
    generator = np.random.RandomState(options.padding_seed)
    return generator.randint(options.block_length, size=num_documents, dtype=np.int16)


def build_index(
    corpus: TokenCorpus, *, documents: NDArray[np.int64], options: PackingOptions
) -> PackedIndex:
    """Lay out the stream of some documents of a corpus.

    Args:
        corpus: where the tokens are; its shards are checked.
        documents: indices of the documents to pack, in this order.
        options: the layout.

    Returns:
        Where each document lies.

    Raises:
        DataError: a shard is damaged, or a row is shorter than a sample.
    """
    lengths = corpus.lengths[documents]
    if options.rows:
        _require_whole_rows(lengths, documents, options)
        lengths = np.full(len(documents), options.sample_length, dtype=np.int32)
    left_pads = left_pad_lengths(corpus.num_documents, options)[documents]
    starts = np.zeros(len(documents) + 1, dtype=np.int64)
    widths = starts[1:]
    widths += lengths
    widths += left_pads
    widths += not options.rows  # EOS
    if options.pad_to_block_boundary:
        widths += -widths % options.block_length
    np.cumsum(widths, out=widths)
    return PackedIndex(
        starts=starts,
        sources=corpus.starts()[documents],
        lengths=np.ascontiguousarray(lengths, dtype=np.int32),
        left_pads=left_pads,
    )


def _require_whole_rows(
    lengths: NDArray[np.int32], documents: NDArray[np.int64], options: PackingOptions
) -> None:
    short = np.flatnonzero(lengths < options.sample_length)
    if short.size:
        row, length = int(documents[short[0]]), int(lengths[short[0]])
        raise DataError(
            f"data.packing=rows - row {row} has {length} tokens, data.seq_length is "
            f"{options.sample_length} - lower data.seq_length, or use data.packing=documents if "
            "these are documents"
        )


class PackedDocuments:
    """The packed stream of some documents of a corpus, and its samples."""

    def __init__(self, corpus: TokenCorpus, index: PackedIndex, options: PackingOptions) -> None:
        """Take a stream that is laid out.

        Args:
            corpus: where the tokens are.
            index: from `build_index`, or a saved one.
            options: the layout that it was made with.
        """
        self.options = options
        self.index = index
        self._read = corpus.tokens.read
        self._eos_id = corpus.eos_id
        self._num_samples = index.num_tokens // options.sample_length

    @classmethod
    def build(
        cls, corpus: TokenCorpus, *, documents: NDArray[np.int64], options: PackingOptions
    ) -> "PackedDocuments":
        """Lay out the stream in memory; arguments as `build_index`."""
        return cls(corpus, build_index(corpus, documents=documents, options=options), options)

    @property
    def num_documents(self) -> int:
        """Documents in the stream."""
        return self.index.num_documents

    @property
    def num_tokens(self) -> int:
        """Length of the stream, EOS and pads included."""
        return self.index.num_tokens

    def __len__(self) -> int:
        """Return the number of whole samples; the rest of the stream is not used."""
        return self._num_samples

    def __getitem__(self, index: int) -> Sample:
        """Return sample `index`.

        Raises:
            IndexError: there is no such sample.
        """
        length = self.options.sample_length
        sample = Sample(np.empty(length, dtype=np.int64), np.empty(length, dtype=np.bool_))
        self.read_into(index, sample.tokens, sample.mask)
        return sample

    def read_into(self, index: int, tokens: NDArray[np.int64], mask: NDArray[np.bool_]) -> None:
        """Write sample `index` into two arrays, [s] each.

        Raises:
            IndexError: there is no such sample.
        """
        if not 0 <= index < self._num_samples:
            raise IndexError(f"sample {index} of {self._num_samples}")
        tokens.fill(self._eos_id)
        mask.fill(False)
        begin = index * self.options.sample_length
        starts = self.index.starts
        first = int(starts.searchsorted(begin, side="right")) - 1
        last = int(starts.searchsorted(begin + self.options.sample_length, side="left"))
        for j in range(first, last):
            self._place(j, begin, tokens, mask)

    def _place(
        self, j: int, begin: int, tokens: NDArray[np.int64], mask: NDArray[np.bool_]
    ) -> None:
        """Write what a sample that begins at `begin` holds of the stream's document j."""
        index = self.index
        length = int(index.lengths[j])
        offset = int(index.starts[j]) + int(index.left_pads[j]) - begin  # of its first token
        start, stop = max(offset, 0), min(offset + length, len(tokens))
        if start < stop:
            source = int(index.sources[j]) - offset
            tokens[start:stop] = self._read(source + start, source + stop)
        # One more than the tokens: the EOS, whose id the sample is filled with. A row has its own.
        end = offset + length + (not self.options.rows)
        mask[start : max(end, 0)] = True
