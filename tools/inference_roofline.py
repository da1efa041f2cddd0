# SPDX-License-Identifier: Apache-2.0
"""The least time that generation can take on a device, from what it must read and multiply.

    step      max(W / bandwidth, B * F / rate) + B * n * c / bandwidth
    prompts   B * (n - 1) * f / rate

W: bytes of weights that a step reads; each pass of the token decoder reads its weights and
the head's again, since their B rows do not fit on the chip between passes. F: floating-point
operations of a row in a step. c: bytes of keys and values of a position, in all layers. n:
positions of a row in the cache. f: operations of one position of a prompt, of whose last
layer only keys and values are needed. Products and attention take turns, so their times add
up; reading weights and multiplying overlap, so the longer one counts. Bandwidth (bytes
read and written by a large copy) and rate (of a large product) are those measured in the
same run. Activations are not counted: the floor cannot be reached.
"""

from dataclasses import dataclass

from bt_megatron.inference.engine.linear import Linear
from bt_megatron.inference.engine.models import BlockModel, Model
from bt_megatron.inference.engine.stack import Stack


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the device reached in this run."""

    bandwidth: float
    """Bytes per second."""
    rate: float
    """Floating-point operations per second in the precision of the layers."""
    head_rate: float
    """The same in the precision of the head."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a model must do; letters as above."""

    weight_bytes: float
    flops: float
    head_flops: float
    """The head's part of F."""
    position_bytes: float
    prompt_flops: float
    step_tokens: int
    position_tokens: int


def linears(stack: Stack) -> list[Linear]:
    """Return the products of a stack."""
    found = []
    for layer in stack.weights.layers:
        found += [one for one in (layer.mixed, layer.out, layer.up, layer.down) if one is not None]
    return found


def numel(products: list[Linear]) -> int:
    """Return the number of weights."""
    return sum(product.weight.numel() for product in products)


def nbytes(products: list[Linear]) -> int:
    """Return the bytes of weights."""
    return sum(product.weight.nbytes for product in products)


def work_of(model: Model, cache_itemsize: int) -> Work:
    """Return what a model must do."""
    context = linears(model.cached.stack)
    shape = model.cached.shape
    k = model.step_tokens
    last = model.cached.stack.weights.layers[-1]
    unused = numel([one for one in (last.mixed, last.out, last.up, last.down) if one is not None])
    unused -= 2 * shape.groups * shape.head_dim * shape.width
    head = 2 * k * model.head.weight.numel()
    if isinstance(model, BlockModel):
        own = linears(model.tokens)
        once = [*context, model.expansion]
        weights = nbytes(once) + k * nbytes([*own, model.head])
        flops = 2 * (numel(once) + model.block_positions * numel(own)) + head
    else:
        weights = k * nbytes([*context, model.head])
        flops = 2 * k * numel(context) + head
    return Work(
        weight_bytes=weights,
        flops=flops,
        head_flops=head,
        position_bytes=2 * shape.layers * shape.groups * shape.head_dim * cache_itemsize,
        prompt_flops=2 * (numel(context) - unused),
        step_tokens=k,
        position_tokens=model.position_tokens,
    )


def step_floor(work: Work, ceilings: Ceilings, rows: int, positions: float) -> float:
    """Return the least seconds of a step of `rows` rows with so many positions each."""
    multiplied = rows * (
        (work.flops - work.head_flops) / ceilings.rate + work.head_flops / ceilings.head_rate
    )
    products = max(work.weight_bytes / ceilings.bandwidth, multiplied)
    reads = work.step_tokens // work.position_tokens  # of the cache in a step
    return products + rows * reads * positions * work.position_bytes / ceilings.bandwidth


def run_floor(work: Work, ceilings: Ceilings, rows: int, prompt: int, new: int) -> float:
    """Return the least seconds for `rows` requests of `prompt` tokens and `new` ones."""
    first = -(-prompt // work.position_tokens)
    steps = -(-new // work.step_tokens)
    middle = first + new / work.position_tokens / 2
    prompts = rows * (first - 1) * work.prompt_flops / ceilings.rate
    return prompts + steps * step_floor(work, ceilings, rows, middle)
