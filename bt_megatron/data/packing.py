# SPDX-License-Identifier: Apache-2.0
"""Documents laid back to back and cut into samples of whole blocks.

The packed stream is never written: document j of it is
[left pads][tokens][EOS][right pads], and sample i is the positions
[i*s, (i+1)*s) of the stream, found by binary search. The pad id is the EOS id,
as in the reference (custom_dataset/tokenized_corpus.py). Unlike there, the EOS
of every document is real (mask 1), also where it closes a block.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bt_megatron.data.corpus import TokenCorpus
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
        options: the packing; all lengths are 0 without random_left_padding.

    Returns:
        [num_documents] lengths in [0, k).
    """
    if not options.random_left_padding:
        return np.zeros(num_documents, dtype=np.int16)
    generator = np.random.RandomState(options.padding_seed)
    return generator.randint(options.block_length, size=num_documents, dtype=np.int16)


class PackedDocuments:
    """The packed stream of some documents of a corpus, and its samples.

    Once built it takes 14 bytes of memory per document (8 for the start in the
    stream, 4 for the index in the corpus, 2 for the left pads): 1.9 GB for the
    134 million documents of the deduplicated Pile.
    """

    def __init__(
        self, corpus: TokenCorpus, *, documents: NDArray[np.int64], options: PackingOptions
    ) -> None:
        """Lay out the stream.

        Args:
            corpus: where the tokens are.
            documents: indices of the documents to pack, in this order.
            options: the layout.
        """
        self.options = options
        self._corpus = corpus
        small = corpus.num_documents <= np.iinfo(np.int32).max
        self._documents = documents.astype(np.int32 if small else np.int64)
        self._left_pads = left_pad_lengths(corpus.num_documents, options)[self._documents]
        self._starts = self._stream_starts()

    def _stream_starts(self) -> NDArray[np.int64]:
        """Return [documents + 1] positions where each document, and the stream's end, begins."""
        starts = np.zeros(len(self._documents) + 1, dtype=np.int64)
        widths = starts[1:]
        widths += self._corpus.lengths[self._documents]
        widths += self._left_pads
        widths += 1  # EOS
        if self.options.pad_to_block_boundary:
            widths += -widths % self.options.block_length
        np.cumsum(widths, out=widths)
        return starts

    @property
    def num_documents(self) -> int:
        """Documents in the stream."""
        return len(self._documents)

    @property
    def num_tokens(self) -> int:
        """Length of the stream, EOS and pads included."""
        return int(self._starts[-1])

    def __len__(self) -> int:
        """Return the number of whole samples; the rest of the stream is not used."""
        return self.num_tokens // self.options.sample_length

    def __getitem__(self, index: int) -> Sample:
        """Return sample `index`.

        Raises:
            IndexError: there is no such sample.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        length = self.options.sample_length
        tokens = np.full(length, self._corpus.eos_id, dtype=np.int64)
        mask = np.zeros(length, dtype=np.bool_)
        begin = index * length
        first = int(np.searchsorted(self._starts, begin, side="right")) - 1
        last = int(np.searchsorted(self._starts, begin + length, side="left"))
        for j in range(first, last):
            self._place(j, begin, tokens, mask)
        return Sample(tokens, mask)

    def _place(
        self, j: int, begin: int, tokens: NDArray[np.int64], mask: NDArray[np.bool_]
    ) -> None:
        """Write what a sample that begins at `begin` holds of the stream's document j."""
        document = self._corpus.document(int(self._documents[j]))
        offset = int(self._starts[j]) + int(self._left_pads[j]) - begin  # of its first token
        start, stop = max(offset, 0), min(offset + len(document), len(tokens))
        if start < stop:
            tokens[start:stop] = document[start - offset : stop - offset]
        # One more than the tokens: the EOS, whose id the sample is filled with.
        mask[start : max(offset + len(document) + 1, 0)] = True
