# SPDX-License-Identifier: Apache-2.0
"""What an evaluation asks of a model: the likelihood of tokens, and greedy continuations.

Everything that is measured rests on `LanguageModel`; whatever has these attributes and two
methods can be evaluated. `bt_megatron/evaluation/exported_model.py` runs the code of an
exported folder. No torch here.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

OnDone = Callable[[int], None]
"""Is told how many more requests are answered."""


@dataclass(frozen=True, slots=True)
class Request:
    """Which tokens are scored, and what stands before them."""

    context: Sequence[int]
    """One token or more."""
    continuation: Sequence[int]
    """One token or more; these are scored."""

    def __post_init__(self) -> None:
        assert len(self.context) > 0, "the first token of a text follows the end-of-text token"
        assert len(self.continuation) > 0, "there is nothing to score"


@dataclass(frozen=True, slots=True)
class TokenScores:
    """How likely each token of a continuation is, given all tokens before it."""

    log_probabilities: NDArray[np.float32]
    """[tokens] natural logarithms. A token in a block that the model never predicts has that of
    the uniform distribution over the vocabulary, as in the exported model's logits."""
    is_best: NDArray[np.bool_]
    """[tokens] whether no other token is likelier; false where nothing is predicted."""

    @property
    def log_likelihood(self) -> float:
        """Logarithm of the probability of the whole continuation."""
        return float(self.log_probabilities.sum(dtype=np.float64))

    @property
    def is_greedy(self) -> bool:
        """Whether greedy decoding would write the continuation."""
        return bool(self.is_best.all())


class LanguageModel(Protocol):
    """A model that can be evaluated."""

    vocab_size: int
    """Rows of the head."""
    block_length: int
    """k, tokens per block; 1 for a model without blocks."""
    left_padding: int
    """Pads in front of each text: 0 to k - 1."""
    max_length: int
    """Tokens that the model reads at most, as in training."""
    eos_id: int
    """Token that ends documents; a text without a context follows it."""

    def score(self, requests: Sequence[Request], on_done: OnDone = ...) -> list[TokenScores]:
        """Score continuations.

        Args:
            requests: in any order and of any length. Of context and continuation the last
                `max_length` + 1 tokens count; a continuation may have `max_length` at most.
            on_done: is told of progress.

        Returns:
            The scores, in the order of the requests.
        """
        ...

    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, on_done: OnDone = ...
    ) -> list[list[int]]:
        """Continue prompts greedily until the end of text or `max_new_tokens`.

        Returns:
            The new tokens, in the order of the prompts, without the end of text.
        """
        ...


def rolling_requests(
    tokens: Sequence[int], *, first_context: int, max_length: int
) -> Iterator[Request]:
    """Cut a text into requests that score each of its tokens once.

    The windows of lm-eval's `loglikelihood_rolling`: of `max_length` scored tokens, each after
    one token of context, but for the last, which has as much context as fits.

    Args:
        tokens: of the text.
        first_context: what stands before it, the end-of-text token.
        max_length: tokens that the model reads at most.
    """
    scored = 0
    while scored < len(tokens):
        end = min(scored + max_length, len(tokens))
        known = tokens[end - max_length - 1 : scored] if scored else [first_context]
        yield Request(known, tokens[scored:end])
        scored = end
