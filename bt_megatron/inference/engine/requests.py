# SPDX-License-Identifier: Apache-2.0
"""What is asked of the engine, and what has come of it."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from bt_megatron.errors import BtError
from bt_megatron.inference.engine.rows import TOP_LOGPROBS

FinishReason = Literal["end", "length", "stop", "cancelled", "timeout"]
MAX_SEED = 2**63


class RequestError(BtError):
    """A request that cannot be served as it is."""

    exit_code = 9


class QueueFullError(RequestError):
    """More requests wait than the engine takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How a text is continued."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    """0: always the best token."""
    top_k: int = 0
    """Keep the most likely tokens; 0: all."""
    top_p: float = 1.0
    """Keep the fewest tokens that together have this probability; 1: all."""
    repetition_penalty: float = 1.0
    """Of tokens of the prompt and the continuation, as in transformers; 1: none."""
    seed: int = 0
    """The same request with the same seed gives the same tokens."""
    end_id: int | None = None
    """Token that ends the text; it is part of the result."""
    logprobs: bool = False
    """Report the log-probability of each token."""
    top_logprobs: int = 0
    """Most likely tokens to report at each place."""
    timeout: float | None = None
    """Seconds from submission after which the request ends as it is."""

    @property
    def is_plain(self) -> bool:
        """Whether only the best tokens are asked for."""
        asked = self.temperature > 0 or self.logprobs or self.top_logprobs
        return not asked and self.repetition_penalty == 1

    def check(self) -> None:
        """Accept or refuse.

        Raises:
            RequestError: naming the first setting that cannot be meant.
        """
        rules = (
            ("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
            ("temperature", 0 <= self.temperature < float("inf"), "0 or more"),
            ("top_k", self.top_k >= 0, "0 (all tokens) or more"),
            ("top_p", 0 < self.top_p <= 1, "more than 0 and at most 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "more than 0"),
            ("seed", 0 <= self.seed < MAX_SEED, f"0 to {MAX_SEED - 1}"),
            ("top_logprobs", 0 <= self.top_logprobs <= TOP_LOGPROBS, f"0 to {TOP_LOGPROBS}"),
            ("timeout", self.timeout is None or self.timeout > 0, "more than 0 seconds"),
        )
        for name, holds, allowed in rules:
            if not holds:
                raise RequestError(f"{name} is {getattr(self, name)}; use {allowed}.")


_numbers = itertools.count()


@dataclass(eq=False, slots=True)
class Request:
    """One text that is being continued. The engine's thread writes, others read."""

    prompt: np.ndarray
    """[s] int32"""
    options: Options
    on_tokens: Callable[["Request"], bool] | None = None
    """Called after each step with new tokens; True ends the request with reason stop."""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[list[tuple[int, float]]] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    number: int = field(default_factory=lambda: next(_numbers))
    submitted: float = field(default_factory=time.monotonic)
    first_token: float | None = None
    """When the first tokens were known (time.monotonic)."""
    cancelled: bool = False
    """Set by cancel(); the engine takes the request out before its next step."""
    pages: list[int] = field(default_factory=list)
    steps: int = 0
    """Steps that were started for it."""

    def cancel(self) -> None:
        """Ask the engine to drop the request."""
        self.cancelled = True

    @property
    def is_late(self) -> bool:
        """Whether its time is up."""
        timeout = self.options.timeout
        return timeout is not None and time.monotonic() - self.submitted > timeout

    def finish(self, reason: FinishReason) -> None:
        """End, once."""
        if self.finish_reason is None:
            self.finish_reason = reason

    def note_tokens(self) -> None:
        """Tell who listens that tokens or the end have come."""
        if self.first_token is None and self.tokens:
            self.first_token = time.monotonic()
        if self.on_tokens is not None and self.on_tokens(self):
            self.finish_reason = "stop"
