# SPDX-License-Identifier: Apache-2.0
"""A language model that follows a rule, so that what is measured on it is known beforehand."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from bt_megatron.evaluation.likelihood import OnDone, Request, TokenScores


class ScriptedModel:
    """Takes the log-probability of each token from a function; writes what another one says."""

    def __init__(
        self,
        *,
        vocab_size: int = 512,
        block_length: int = 4,
        left_padding: int = 0,
        max_length: int = 64,
        rule: Callable[[list[int], int], float] | None = None,
        write: Callable[[Sequence[int]], list[int]] = lambda prompt: [],
    ) -> None:
        """Take the rules.

        Args:
            vocab_size: rows of the head.
            block_length: tokens per block.
            left_padding: pads in front of texts.
            max_length: tokens that are read at most.
            rule: log-probability of a token, from all tokens before it; None: uniform.
            write: the continuation of a prompt.
        """
        self.vocab_size, self.block_length = vocab_size, block_length
        self.left_padding, self.max_length, self.eos_id = left_padding, max_length, 0
        self._rule = rule or (lambda known, token: -math.log(vocab_size))
        self._write = write

    def score(self, requests: Sequence[Request], on_done: OnDone) -> list[TokenScores]:
        scores = []
        for request in requests:
            known, logs = list(request.context), []
            for token in request.continuation:
                logs.append(self._rule(known, token))
                known.append(token)
            scores.append(TokenScores(np.array(logs, np.float32), np.zeros(len(logs), np.bool_)))
            on_done(1)
        return scores

    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, on_done: OnDone
    ) -> list[list[int]]:
        on_done(len(prompts))
        return [self._write(prompt)[:max_new_tokens] for prompt in prompts]
