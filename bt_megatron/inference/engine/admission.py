# SPDX-License-Identifier: Apache-2.0
"""Puts requests into rows of the device, and closes the gaps that others leave."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from bt_megatron.inference.engine.models import Model
from bt_megatron.inference.engine.requests import Request
from bt_megatron.inference.engine.rows import Prompts, Real, Rows, Whole

WORD = 2**32


def positions_at_once(model: Model) -> int:
    """Return how many positions of prompts are read in one pass.

    As many as keep the device busy for longer than the host needs to start it, which for
    narrow layers are more.
    """
    return 2**25 // model.cached.shape.width


def prompt_positions(model: Model, tokens: int) -> int:
    """Return how many positions of a prompt are read before the first step."""
    return -(-tokens // model.position_tokens) - 1


def padded_prompt(model: Model, prompt: np.ndarray) -> np.ndarray:
    """Return a prompt with pads in front that make its blocks whole, as in training."""
    pads = -len(prompt) % model.position_tokens
    return np.pad(prompt, (pads, 0), constant_values=model.pad_id) if pads else prompt


class Admission:
    """Writes rows. Only the thread that runs steps may use it."""

    def __init__(self, model: Model, rows: Rows) -> None:
        """Take the rows of an engine."""
        self.model, self.rows = model, rows

    def enter(self, requests: Sequence[Request], *, first_row: int) -> None:
        """Write requests into rows first_row, first_row + 1, ... and read their prompts."""
        rows, count = self.rows, len(requests)
        prompts = [padded_prompt(self.model, request.prompt) for request in requests]
        view = Rows(
            *(getattr(rows, name)[first_row : first_row + count] for name in Rows.__slots__)
        )
        self._write(view.whole, [self._whole(request) for request in requests], torch.int32)
        self._write(view.real, [self._real(request) for request in requests], torch.float32)
        width = rows.table.shape[1]
        tables = [request.pages + [0] * (width - len(request.pages)) for request in requests]
        self._write(view.table, tables, torch.int32)
        held = rows.tokens.shape[1]
        last = np.zeros((count, held), dtype=np.int32)
        for row, prompt in zip(last, prompts, strict=True):
            row[max(held - len(prompt), 0) :] = prompt[-held:]
        view.tokens.copy_(self._sent(torch.from_numpy(last)))
        for index, request in enumerate(requests):
            if request.options.repetition_penalty != 1:
                view.seen[index].zero_()
                view.seen[index, self._sent(torch.from_numpy(request.prompt).long())] = 1
        self._read(prompts, view)

    def _whole(self, request: Request) -> list[int]:
        options = request.options
        values = {
            Whole.LENGTH: prompt_positions(self.model, len(request.prompt)),
            Whole.ALIVE: 1,
            Whole.REMAINING: options.max_new_tokens,
            Whole.DRAWN: 0,
            Whole.END: -1 if options.end_id is None else options.end_id,
            Whole.TOP_K: options.top_k,
            Whole.SEED_LOW: _signed(options.seed % WORD),
            Whole.SEED_HIGH: _signed(options.seed // WORD),
        }
        return [values[column] for column in Whole]

    def _real(self, request: Request) -> list[float]:
        options = request.options
        values = {
            Real.TEMPERATURE: options.temperature,
            Real.TOP_P: options.top_p,
            Real.PENALTY: options.repetition_penalty,
        }
        return [values[column] for column in Real]

    def _write(self, target: Tensor, values: Sequence[Sequence[float]], dtype: torch.dtype) -> None:
        target.copy_(self._sent(torch.tensor(values, dtype=dtype)))

    def _sent(self, tensor: Tensor) -> Tensor:
        if not self.rows.whole.is_cuda:
            return tensor
        return tensor.pin_memory().to(self.rows.whole.device, non_blocking=True)

    def _read(self, prompts: Sequence[np.ndarray], rows: Rows) -> None:
        size = self.model.position_tokens
        lengths = [len(prompt) // size - 1 for prompt in prompts]
        for chosen in batches_by_length(lengths, positions_at_once(self.model)):
            ids = np.zeros((len(chosen), lengths[chosen[0]] * size), dtype=np.int32)
            for row, index in zip(ids, chosen, strict=True):
                length = lengths[index] * size
                row[:length] = prompts[index][:length]
            index = self._sent(torch.tensor(chosen))
            place = Prompts(rows.whole[index, Whole.LENGTH], rows.table[index])
            self.model.read_prompts(self._sent(torch.from_numpy(ids)), place)

    def close_gaps(self, requests: Sequence[Request], ended: Sequence[int]) -> list[Request]:
        """Move the last rows into the rows that ended.

        Args:
            requests: by row.
            ended: rows whose requests have ended.

        Returns:
            The requests that go on, by row.
        """
        gone = set(ended)
        kept = len(requests) - len(gone)
        gaps = sorted(row for row in gone if row < kept)
        movers = [row for row in range(kept, len(requests)) if row not in gone]
        going_on = list(requests[:kept])
        for gap, mover in zip(gaps, movers, strict=True):
            going_on[gap] = requests[mover]
        if gaps:
            self.rows.move(self._sent(torch.tensor(movers)), self._sent(torch.tensor(gaps)))
        self.rows.kill(self._sent(torch.arange(kept, len(requests))))
        return going_on


def _signed(word: int) -> int:
    return word - WORD if word >= WORD // 2 else word


def batches_by_length(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Yield indices of prompts that are read together, of similar length; empty ones never.

    Args:
        lengths: positions of each prompt.
        most: positions of a batch, padding included; a longer prompt is a batch by itself.
    """
    ordered = sorted((i for i, n in enumerate(lengths) if n), key=lambda i: -lengths[i])
    while ordered:
        count = max(1, most // lengths[ordered[0]])
        yield ordered[:count]
        ordered = ordered[count:]
