# SPDX-License-Identifier: Apache-2.0
"""Continuous batching: requests join and leave between steps.

One thread calls `step`; others submit and cancel. A step of the device is started before
the results of the one before it are looked at, so the device never waits for the host. A
request that ends early is therefore in one more step, which writes nothing.

Pages for the whole of a request are taken when it is admitted: it can always finish, and
nothing is ever computed twice. Requests are admitted in the order in which they came.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from bt_megatron.inference.engine.admission import Admission, prompt_positions
from bt_megatron.inference.engine.cache import PageAllocator, make_cache, pages_for
from bt_megatron.inference.engine.memory import pages_per_request, pages_that_fit
from bt_megatron.inference.engine.models import Model
from bt_megatron.inference.engine.requests import Options, QueueFullError, Request, RequestError
from bt_megatron.inference.engine.rows import Wanted, Whole, make_rows
from bt_megatron.inference.engine.runner import Flight, StepRunner


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Limits of an engine."""

    max_rows: int = 64
    """Requests that run at a time."""
    max_tokens: int = 2048
    """Longest sequence, prompt and continuation."""
    max_waiting: int = 1_000_000
    """Requests that wait for a row."""
    cache_bytes: int | None = None
    """For keys and values; None: what is free, at most what max_rows of max_tokens need."""
    cache_type: torch.dtype | None = None
    """float8_e4m3fn for FP8; None: the model's."""
    positions_per_step: int | None = None
    """Prompt positions read between two steps; None: as many as rows are free for."""
    graphs: bool = True
    """Run steps from CUDA graphs, on a GPU."""

    def with_cache(self, dtype: torch.dtype) -> "Settings":
        """Return the same limits with another type of keys and values."""
        return replace(self, cache_type=dtype)


class Engine:
    """Runs requests on one model."""

    def __init__(self, model: Model, settings: Settings, device: torch.device) -> None:
        """Allocate rows and cache."""
        self.model, self.settings, self.device = model, settings, device
        pages_per_row = pages_per_request(model, settings.max_tokens)
        self.rows = make_rows(
            settings.max_rows,
            tokens=model.step_tokens,
            pages=pages_per_row,
            vocab_size=model.vocab_size,
            device=device,
        )
        cache_type = settings.cache_type or model.dtype
        pages = 1 + pages_that_fit(
            model, cache_type, most=settings.max_rows * pages_per_row, rows=settings.max_rows,
            limit=settings.cache_bytes, device=device,
        )  # fmt: skip
        model.cache = make_cache(model.cached.shape, pages=pages, dtype=cache_type, device=device)
        self.pages = PageAllocator(pages)
        self.admission = Admission(model, self.rows)
        self.runner = StepRunner(model, self.rows, graphs=settings.graphs and device.type == "cuda")
        self.running: list[Request] = []
        self.waiting: deque[Request] = deque()
        self._lock = threading.Lock()
        self._flight: Flight | None = None

    def submit(
        self,
        prompt: Sequence[int] | np.ndarray,
        options: Options,
        on_tokens: Callable[[Request], bool] | None = None,
    ) -> Request:
        """Queue a request; may be called by any thread.

        Raises:
            QueueFullError: too many wait.
            RequestError: it can never be served.
        """
        ids = np.asarray(prompt)
        self.check(ids, options)
        request = Request(ids.astype(np.int32, copy=False), options, on_tokens)
        with self._lock:
            if len(self.waiting) >= self.settings.max_waiting:
                raise QueueFullError(
                    f"{len(self.waiting)} requests wait, as many as are allowed. Try again later."
                )
            self.waiting.append(request)
        return request

    def check(self, prompt: np.ndarray, options: Options) -> None:
        """Accept or refuse a request with a prompt [s].

        Raises:
            RequestError: it can never be served.
        """
        options.check()
        if prompt.ndim != 1 or not len(prompt):
            raise RequestError("the prompt has no tokens. Give at least one.")
        lowest, highest = prompt.min(), prompt.max()
        if not 0 <= lowest <= highest < self.model.vocab_size:
            raise RequestError(
                f"the prompt has token ids from {lowest} to {highest}, the model's are "
                f"0 to {self.model.vocab_size - 1}. Use the model's own tokenizer."
            )
        total = len(prompt) + options.max_new_tokens
        if total > self.settings.max_tokens:
            raise RequestError(
                f"{len(prompt)} tokens of prompt and {options.max_new_tokens} new ones are "
                f"{total}, allowed are {self.settings.max_tokens}. Shorten one of them."
            )
        needed = pages_for(self._positions(len(prompt), options))
        if needed > self.pages.total:
            raise RequestError(
                f"the request needs {needed} pages of the cache, there are {self.pages.total}. "
                "Shorten it, or give the engine more memory."
            )

    def _positions(self, prompt: int, options: Options) -> int:
        # Positions of the cache that the request fills at most.
        written = -(-options.max_new_tokens // self.model.position_tokens)
        return prompt_positions(self.model, prompt) + written

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.running or self.waiting or self._flight)

    @torch.inference_mode()
    def step(self) -> None:
        """Admit, start a step, and deal with the results of the step before."""
        self._drop_unwanted()
        self._leave()
        self._admit()
        flight = None
        if self.running:
            flight = self.runner.start(list(self.running), wanted_by(self.running))
            for request in self.running:
                request.steps += 1
        before, self._flight = self._flight, flight
        if before is not None:
            self._deliver(before)

    def run(self) -> None:
        """Run until all requests are finished."""
        while not self.is_idle:
            self.step()

    def generate(
        self, prompts: Sequence[Sequence[int] | np.ndarray], options: Options | Sequence[Options]
    ) -> list[Request]:
        """Continue prompts and return the finished requests in the same order."""
        each = [options] * len(prompts) if isinstance(options, Options) else options
        pairs = zip(prompts, each, strict=True)
        requests = [self.submit(prompt, chosen) for prompt, chosen in pairs]
        self.run()
        return requests

    def _drop_unwanted(self) -> None:
        for request in self.running:
            _drop_if_unwanted(request)
        with self._lock:
            for request in self.waiting:
                _drop_if_unwanted(request)
            if any(request.finish_reason for request in self.waiting):
                self.waiting = deque(r for r in self.waiting if r.finish_reason is None)

    def _leave(self) -> None:
        # A request whose last step was started can go: what comes into its row and pages now
        # is written after that step has read them.
        size = self.model.step_tokens
        ended = [
            row
            for row, request in enumerate(self.running)
            if request.finish_reason or request.steps * size >= request.options.max_new_tokens
        ]
        if not ended:
            return
        for row in ended:
            self.pages.give_back(self.running[row].pages)
        self.running = self.admission.close_gaps(self.running, ended)

    def _admit(self) -> None:
        budget = self.settings.positions_per_step
        admitted: list[Request] = []
        free_rows = self.settings.max_rows - len(self.running)
        read = 0
        with self._lock:
            while self.waiting and len(admitted) < free_rows:
                request = self.waiting[0]
                pages = pages_for(self._positions(len(request.prompt), request.options))
                read += prompt_positions(self.model, len(request.prompt))
                over = budget is not None and admitted and read > budget
                if pages > self.pages.free or over:
                    break
                request.pages = self.pages.take(pages)
                admitted.append(self.waiting.popleft())
        if admitted:
            self.admission.enter(admitted, first_row=len(self.running))
            self.running.extend(admitted)

    def _deliver(self, flight: Flight) -> None:
        flight.wait()
        results = flight.results
        tokens, logprobs = results["tokens"].tolist(), results["logprobs"].tolist()
        drawn = results["whole"][:, Whole.DRAWN].tolist()
        alive = results["whole"][:, Whole.ALIVE].tolist()
        for row, request in enumerate(flight.requests):
            if request.finish_reason is not None:
                continue
            count = drawn[row] - len(request.tokens)
            request.tokens += tokens[row][:count]
            if not request.options.is_plain:
                request.logprobs += logprobs[row][:count]
            if request.options.top_logprobs:
                _take_top(request, results, row, count)
            if not alive[row]:
                is_end = request.tokens[-1] == request.options.end_id
                request.finish("end" if is_end else "length")
            request.note_tokens()


def wanted_by(requests: Sequence[Request]) -> Wanted:
    """Return what a step must give."""
    return Wanted(
        plain=all(request.options.is_plain for request in requests),
        top=any(request.options.top_logprobs for request in requests),
    )


def _drop_if_unwanted(request: Request) -> None:
    if request.cancelled:
        request.finish("cancelled")
    elif request.is_late:
        request.finish("timeout")
    if request.finish_reason in ("cancelled", "timeout"):
        request.note_tokens()


def _take_top(request: Request, results: dict[str, torch.Tensor], row: int, count: int) -> None:
    wanted = request.options.top_logprobs
    ids = results["top_ids"][row, :count, :wanted].tolist()
    values = results["top_logprobs"][row, :count, :wanted].tolist()
    request.top += [list(zip(*pair, strict=True)) for pair in zip(ids, values, strict=True)]
