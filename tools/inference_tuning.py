# SPDX-License-Identifier: Apache-2.0
"""Chooses tiles of the engine's kernels by measurement, for the tables in triton_ops.py."""

from collections.abc import Callable

import torch
from triton.runtime.errors import OutOfResources

from bt_megatron.inference.engine import triton_ops
from bt_megatron.inference.engine.engine import Engine
from bt_megatron.inference.engine.linear import Linear
from bt_megatron.inference.engine.models import Model
from bt_megatron.inference.engine.rows import Whole
from bt_megatron.inference.engine.triton_ops import CacheTiling
from tools.inference_speed import GPU, median_seconds

CACHE_CANDIDATES = (
    *(CacheTiling(tile, warps, 1) for tile, warps in ((32, 2), (32, 4), (64, 4), (64, 8))),
    *(CacheTiling(16, 2, 1), CacheTiling(128, 8, 1), CacheTiling(32, 4, 2)),
)
NARROW_CANDIDATES = ((1, 2048), (2, 1024), (2, 2048), (4, 512), (4, 1024), (4, 2048), (8, 512))
L2_BYTES = 200e6
"""Weights that are read in turn have more bytes together than the L2 cache."""
_known: set[object] = set()


def tune_cache(engine: Engine, rows: int, positions: int) -> None:
    """Choose the tiling of attention over the cache for a head width and number format."""
    shape, cache = engine.model.cached.shape, engine.model.cache
    assert cache is not None
    key = (shape.head_dim, cache.itemsize)
    if rows == 1 or key in _known or shape.heads != shape.groups:
        return
    _known.add(key)
    held = engine.rows.first(rows)
    each = held.table.shape[1]
    held.table.copy_(1 + torch.arange(rows * each, device=GPU).view(rows, each))
    held.whole[:, Whole.ALIVE] = 1
    held.whole[:, Whole.LENGTH] = positions
    mixed = torch.randn(rows, shape.mixed, device=GPU, dtype=engine.model.dtype)
    out = torch.empty(rows, shape.attended, device=GPU, dtype=engine.model.dtype)
    angles = engine.model.cached.angles
    nbytes = rows * positions * 2 * shape.attended * cache.itemsize

    def attend() -> None:
        triton_ops.attend_cached(mixed, cache[0], held, angles, shape, out)

    def choose(tiling: CacheTiling) -> None:
        triton_ops.CACHE_TILINGS[key] = tiling

    best = _fastest(CACHE_CANDIDATES, choose, attend, nbytes)
    say(f"  CACHE_TILINGS[{key}] = {best}")
    engine.rows.kill(torch.arange(engine.rows.count, device=GPU))


def tune_narrow(model: Model) -> None:
    """Choose tiles of the products of one row."""
    stack = model.cached.stack
    shape = stack.shape
    layers = stack.weights.layers
    if shape.width in _known:
        return
    _known.add(shape.width)
    x = torch.randn(1, shape.width, device=GPU, dtype=model.dtype)
    joined = torch.randn(1, layers[0].out.weight.shape[1], device=GPU, dtype=model.dtype)
    shift = layers[0].shift

    def all_of(products: list[Linear], call: Callable[[Linear], object]) -> Callable[[], None]:
        turns = max(1, int(L2_BYTES / sum(product.weight.nbytes for product in products)))

        def run() -> None:
            for product in products * turns:
                call(product)

        graph = torch.cuda.CUDAGraph()
        run()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            run()
        return graph.replay

    tables = (
        (
            triton_ops.NARROW_FIRST_TILES,
            shape.width,
            [layer.mixed for layer in layers],
            lambda product: triton_ops.narrow_first(x, shift, product, shape, joined),
        ),
        (
            triton_ops.NARROW_LAST_TILES,
            joined.shape[1],
            [layer.out for layer in layers],
            lambda product: triton_ops.narrow_last(x, joined, product),
        ),
    )
    for table, key, products, call in tables:
        found = {}
        for tile in NARROW_CANDIDATES:
            table[key] = tile
            found[tile] = median_seconds(all_of(products, call), GPU, 5)
        table[key] = min(found, key=lambda tile: found[tile])
        nbytes = sum(p.weight.nbytes for p in products)
        nbytes *= max(1, int(L2_BYTES / nbytes))
        rates = ", ".join(f"{tile} {nbytes / t / 1e12:.2f}" for tile, t in found.items())
        say(f"  narrow tiles, {key} inputs: {table[key]} (TB/s: {rates})")


def _fastest(
    candidates: tuple[CacheTiling, ...],
    choose: Callable[[CacheTiling], None],
    call: Callable[[], None],
    nbytes: int,
) -> CacheTiling:
    found = {}
    for candidate in candidates:
        choose(candidate)
        try:
            found[candidate] = median_seconds(call, GPU, 5)
        except OutOfResources as error:
            say(f"    {candidate}: {error}")
            continue
        say(f"    {candidate}: {nbytes / found[candidate] / 1e12:.2f} TB/s")
    best = min(found, key=lambda candidate: found[candidate])
    choose(best)
    return best


def say(text: str) -> None:
    """Print at once."""
    print(text, flush=True)  # noqa: T201
