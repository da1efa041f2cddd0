# SPDX-License-Identifier: Apache-2.0
"""Unigram and bigram models over token ids, by counting.

    unigram  p(w)     = (c(w) + a) / (N + a V)
    bigram   p(w | u) = max(c(u w) - D, 0) / c(u) + D S(u) / c(u) * p(w)

c counts training tokens, N is their number, V the size of the vocabulary and
S(u) the number of different tokens seen after u; after a u that was never seen
the bigram is the unigram. The first is additive smoothing, the second absolute
discounting, interpolated (Ney, Essen and Kneser, "On structuring probabilistic
dependences in stochastic language modelling", 1994; both as in Chen and
Goodman, "An empirical study of smoothing techniques for language modeling",
TR-10-98, sections 2.1 and 2.6). a and D are those of a grid that give held-out
text the highest likelihood.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]

ADDITIONS = np.logspace(-4, 1, 26)
DISCOUNTS = np.linspace(0.02, 0.98, 49)


@dataclass(frozen=True, slots=True)
class PairCounts:
    """How often each token followed each other one; only pairs that occurred are stored."""

    vocab_size: int
    """V; ids are below it."""
    keys: Ids
    """[pairs] context * V + token, ascending, each once."""
    counts: Ids
    """[pairs]."""

    @property
    def tokens(self) -> Ids:
        """[V] how often each token occurred as the second of a pair."""
        return _sum_at(self.keys % self.vocab_size, self.counts, self.vocab_size)

    @property
    def contexts(self) -> Ids:
        """[V] how often each token occurred as the first of a pair."""
        return _sum_at(self.keys // self.vocab_size, self.counts, self.vocab_size)

    @property
    def successors(self) -> Ids:
        """[V] how many different tokens followed each token."""
        return np.bincount(self.keys // self.vocab_size, minlength=self.vocab_size)


def count_pairs(pieces: Iterable[tuple[Ids, Ids]], *, vocab_size: int) -> PairCounts:
    """Count pairs of neighbours.

    Args:
        pieces: contexts and tokens, both [n], of one piece of text after another.
        vocab_size: V.
    """
    keys, counts = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    for contexts, tokens in pieces:
        new_keys, new_counts = np.unique(contexts * vocab_size + tokens, return_counts=True)
        keys, counts = _merge(
            np.concatenate([keys, new_keys]), np.concatenate([counts, new_counts])
        )
    return PairCounts(vocab_size, keys, counts)


def _merge(keys: Ids, counts: Ids) -> tuple[Ids, Ids]:
    """Sort keys and add up the counts of equal ones."""
    if not keys.size:
        return keys, counts
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], counts[order]
    firsts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    return keys[firsts], np.add.reduceat(counts, firsts)


def _sum_at(places: Ids, values: Ids, size: int) -> Ids:
    """Return [size] sums of the values by place."""
    sums = np.zeros(size, dtype=np.int64)
    np.add.at(sums, places, values)
    return sums


class NgramModel:
    """A unigram and a bigram model of the same counted text."""

    def __init__(self, pairs: PairCounts, *, addition: float, discount: float) -> None:
        """Prepare the tables.

        Args:
            pairs: counts of the training text.
            addition: a, above 0.
            discount: D, between 0 and 1.
        """
        self.addition = addition
        self.discount = discount
        self._pairs = pairs
        self._contexts = pairs.contexts
        self._successors = pairs.successors
        tokens = pairs.tokens
        self._unigram: Floats = (tokens + addition) / (tokens.sum() + addition * pairs.vocab_size)

    def unigram(self, tokens: Ids) -> Floats:
        """Return the probabilities of tokens, in the shape of `tokens`."""
        return self._unigram[tokens]

    def bigram(self, contexts: Ids, tokens: Ids) -> Floats:
        """Return the probabilities of tokens [n] after contexts [n]."""
        pairs = self._count(contexts, tokens)
        seen = self._contexts[contexts]
        once = np.maximum(seen, 1)  # not to divide by 0; replaced below
        kept = np.maximum(pairs - self.discount, 0.0) / once
        spread = np.where(seen > 0, self.discount * self._successors[contexts] / once, 1.0)
        probabilities: Floats = kept + spread * self._unigram[tokens]
        return probabilities

    def _count(self, contexts: Ids, tokens: Ids) -> Ids:
        """Return how often pairs occurred, [n]."""
        wanted = contexts * self._pairs.vocab_size + tokens
        if not self._pairs.keys.size:
            return np.zeros_like(wanted)
        places = np.minimum(np.searchsorted(self._pairs.keys, wanted), len(self._pairs.keys) - 1)
        return np.where(self._pairs.keys[places] == wanted, self._pairs.counts[places], 0)


def fit(training: PairCounts, held_out: PairCounts) -> NgramModel:
    """Return the model of the training text under which held-out text is most likely.

    Args:
        training: counts to build the model from.
        held_out: counts of other text.
    """
    contexts, tokens = np.divmod(held_out.keys, held_out.vocab_size)

    def unigram_loss(addition: float) -> float:
        model = NgramModel(training, addition=addition, discount=0.5)
        return float(-held_out.counts @ np.log(model.unigram(tokens)))

    addition = min(ADDITIONS.tolist(), key=unigram_loss)

    def bigram_loss(discount: float) -> float:
        model = NgramModel(training, addition=addition, discount=discount)
        return float(-held_out.counts @ np.log(model.bigram(contexts, tokens)))

    discount = min(DISCOUNTS.tolist(), key=bigram_loss)
    return NgramModel(training, addition=addition, discount=discount)
