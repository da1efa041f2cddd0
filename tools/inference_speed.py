# SPDX-License-Identifier: Apache-2.0
"""Measures the engine: time of a step, of prompts, and of whole runs."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from bt_megatron.inference.engine.admission import positions_at_once
from bt_megatron.inference.engine.engine import Engine, Settings
from bt_megatron.inference.engine.memory import pages_per_request, pages_that_fit
from bt_megatron.inference.engine.models import Model
from bt_megatron.inference.engine.requests import Options
from bt_megatron.inference.engine.rows import Prompts, Wanted, Whole

ROW_COUNTS = (
    *(8192, 7168, 6144, 5120, 4096, 3584, 3072, 2560, 2304, 2048, 1792, 1536, 1408, 1280, 1152),
    *(1024, 896, 768, 640, 512, 448, 384, 320, 256, 192, 128, 64, 32, 16, 8, 4, 2, 1),
)
"""Batches to choose from: multiples of the tiles of products."""
COPY_BYTES = 2**31
MATRIX = 8192
MANY = 2**30
PROFILED = 4
PLAIN = Wanted(plain=True, top=False)
GPU = torch.device("cuda")


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked for: tokens of the prompts and new ones."""

    prompt: int
    new: int

    @property
    def total(self) -> int:
        """Tokens of a sequence in the end."""
        return self.prompt + self.new


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Return the time of one call, on a GPU between events."""
    if device.type != "cuda":
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def median_seconds(call: Callable[[], object], device: torch.device, repetitions: int) -> float:
    """Return the median time of a call, after one to warm up."""
    return statistics.median([seconds_of(call, device) for _ in range(repetitions + 1)][1:])


def copy_bandwidth() -> float:
    """Return bytes read and written per second by a large copy."""
    source = torch.randint(0, 2**31, (COPY_BYTES // 8,), device="cuda")
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / median_seconds(lambda: target.copy_(source), GPU, 10)


def matrix_rate(*, fp8: bool) -> float:
    """Return floating-point operations per second of a large product."""
    a, b = (torch.randn(MATRIX, MATRIX, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    if not fp8:
        return 2 * MATRIX**3 / median_seconds(lambda: a @ b.T, GPU, 10)
    unit = torch.ones((), device="cuda")
    small, other = (x.to(torch.float8_e4m3fn) for x in (a, b))

    def multiply() -> torch.Tensor:
        return torch._scaled_mm(
            small, other.T, scale_a=unit, scale_b=unit, out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )  # fmt: skip

    return 2 * MATRIX**3 / median_seconds(multiply, GPU, 10)


def row_counts(model: Model, load: Load, cache_type: torch.dtype, tries: int) -> list[int]:
    """Return batches to try: the largest that fits in memory, and smaller ones."""
    each = pages_per_request(model, load.total)

    def fits(rows: int) -> bool:
        pages = pages_that_fit(model, cache_type, most=MANY, rows=rows, limit=None, device=GPU)
        return pages >= rows * each

    return [rows for rows in ROW_COUNTS if fits(rows)][:tries]


def make_engine(
    model: Model, load: Load, rows: int, cache_type: torch.dtype, device: torch.device = GPU
) -> Engine:
    """Return an engine with random keys and values, which are slower to read than zeros."""
    settings = Settings(max_rows=rows, max_tokens=load.total, cache_type=cache_type)
    engine = Engine(model, settings, device)
    assert model.cache is not None
    for layer in model.cache:
        for pages in layer.split(2048):
            pages.copy_(torch.randn(pages.shape, dtype=torch.bfloat16, device=device))
    return engine


@torch.inference_mode()
def step_seconds(engine: Engine, rows: int, positions: int, repetitions: int = 3) -> float:
    """Return the time of a step of so many rows with so many positions in the cache each."""
    device, held = engine.device, engine.rows.first(rows)
    each = held.table.shape[1]
    held.table.copy_(1 + torch.arange(rows * each, device=device).view(rows, each))
    held.whole[:, Whole.REMAINING] = MANY
    held.whole[:, Whole.END] = -1
    times = []
    for _ in range(repetitions + 1):
        held.whole[:, Whole.ALIVE] = 1
        held.whole[:, Whole.LENGTH] = positions
        times.append(seconds_of(lambda: engine.runner.run(rows, PLAIN), device))
    engine.rows.kill(torch.arange(engine.rows.count, device=device))
    return statistics.median(times[1:])


def step_profile(engine: Engine, rows: int, positions: int) -> str:
    """Return the time of each kind of kernel in a step, the longest first."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as recorded:
        step_seconds(engine, rows, positions, repetitions=PROFILED - 1)
    found = [event for event in recorded.key_averages() if event.self_device_time_total]
    found.sort(key=lambda event: -event.self_device_time_total)
    return "\n".join(
        f"    {event.self_device_time_total / PROFILED:10.1f} us {event.count / PROFILED:6.1f} x "
        f"{event.key[:90]}"
        for event in found[:16]
    )


@torch.inference_mode()
def prompt_seconds(engine: Engine, load: Load) -> float:
    """Return the time that reading one prompt takes, among as many as are read at once."""
    model, device = engine.model, engine.device
    positions = -(-load.prompt // model.position_tokens) - 1
    count = max(1, min(positions_at_once(model) // positions, engine.rows.count))
    size = (count, positions * model.position_tokens)
    tokens = torch.randint(model.vocab_size, size, device=device, dtype=torch.int32)
    each = engine.rows.table.shape[1]
    table = 1 + torch.arange(count * each, device=device, dtype=torch.int32).view(count, each)
    lengths = torch.full((count,), positions, device=device, dtype=torch.int32)
    prompts = Prompts(lengths, table)
    return median_seconds(lambda: model.read_prompts(tokens, prompts), device, 3) / count


@dataclass(frozen=True, slots=True)
class Run:
    """A whole run."""

    seconds: float
    tokens: int
    first_token: float
    """Seconds from submission to the first tokens of the first request."""


def whole_run(engine: Engine, load: Load, count: int) -> Run:
    """Serve `count` requests that come at once, and time it."""
    draw = np.random.default_rng(0)
    prompts = draw.integers(engine.model.vocab_size, size=(count, load.prompt), dtype=np.int32)
    options = Options(max_new_tokens=load.new)
    start = time.perf_counter()
    requests = engine.generate(list(prompts), options)
    seconds = time.perf_counter() - start
    first = requests[0]
    assert first.first_token is not None
    tokens = sum(len(request.tokens) for request in requests)
    return Run(seconds, tokens, first.first_token - first.submitted)
