# SPDX-License-Identifier: Apache-2.0
"""Token attention written out in float64, and how far the kernels are from it.

    TRITON_INTERPRET=1 python -m tests.token_attention_cases < cases.json

measures the cases of a JSON list on the CPU and prints their errors: Triton decides
when it is imported whether it interprets, so that takes a process of its own.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One attention."""

    positions: int
    head_dim: int
    heads: int = 2
    groups: int = 2
    blocks: int = 5
    batch: int = 1
    rotary: float = 0.25
    """Part of each head that is rotated."""
    mask: bool = True
    """Whether keys are hidden; all of them in column 0."""
    causal: bool = True
    dtype: str = "float32"

    def __str__(self) -> str:
        parts = [f"q{self.positions}", f"d{self.head_dim}", f"a{self.heads}", f"g{self.groups}"]
        parts += [f"n{self.blocks}", f"b{self.batch}", f"rotary{self.rotary}"]
        parts += ["mask"] * self.mask + ["bidirectional"] * (not self.causal) + [self.dtype]
        return "-".join(parts)

    @property
    def columns(self) -> int:
        return self.blocks * self.batch


@dataclass(frozen=True)
class Inputs:
    """Tensors of a case."""

    qkv: Tensor
    out_grad: Tensor
    rotary: Tensor | None
    mask: Tensor | None


def make_inputs(case: Case, device: str = "cpu") -> Inputs:
    """Draw inputs; positions that are padding are hidden at random, in column 0 all."""
    generator = torch.Generator(device).manual_seed(case.positions * 1000 + case.head_dim)
    dtype = getattr(torch, case.dtype)
    rows = (case.positions * case.blocks, case.batch)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype, generator=generator)

    rotary = mask = None
    if rotated := int(case.rotary * case.head_dim):
        shape = (case.positions, rotated // 2)
        angles = 6.0 * torch.rand(*shape, device=device, generator=generator)
        angles = torch.cat((angles, angles), dim=-1)
        rotary = torch.stack((angles.cos(), angles.sin()))
    if case.mask:
        shape = (case.positions, case.columns)
        mask = torch.rand(*shape, device=device, generator=generator) > 0.4
        mask[:, 0] = False
    width = case.heads * case.head_dim
    mixed = width + 2 * case.groups * case.head_dim
    return Inputs(draw(*rows, mixed), draw(*rows, width), rotary, mask)


def attention_in_float64(case: Case, qkv: Tensor, rotary: Tensor | None, mask: Tensor | None):
    """Attend in [q, columns, (a + 2*groups)*d] and return [q, columns, a*d]."""
    positions, columns = qkv.shape[:2]
    parts = qkv.double().reshape(positions, columns, case.groups, -1, case.head_dim)
    queries, keys, values = parts[..., :-2, :], parts[..., -2, :], parts[..., -1, :]
    queries, keys = turned(queries, rotary), turned(keys, rotary)
    scores = torch.einsum("icgrd,jcgd->cgrij", queries, keys) / case.head_dim**0.5
    hidden = torch.zeros_like(scores, dtype=torch.bool)
    if case.causal:
        hidden |= hidden.new_ones(positions, positions).triu(1)
    if mask is not None:
        hidden |= ~mask.T[:, None, None, None, :]
    weights = scores.masked_fill(hidden, torch.finfo(torch.float32).min).softmax(-1)
    return torch.einsum("cgrij,jcgd->icgrd", weights, values).reshape(positions, columns, -1)


def turned(vectors: Tensor, rotary: Tensor | None) -> Tensor:
    """Rotate the first dimensions of [q, ..., d] as complex numbers."""
    if rotary is None:
        return vectors
    half = rotary.shape[-1] // 2
    cos, sin = (
        rotary[..., :half].double().reshape(2, len(vectors), *[1] * (vectors.dim() - 2), half)
    )
    pairs = torch.complex(vectors[..., :half], vectors[..., half : 2 * half])
    pairs = pairs * torch.complex(cos, sin)
    return torch.cat((pairs.real, pairs.imag, vectors[..., 2 * half :]), dim=-1)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill new tensors with NaN, so that what a kernel leaves unwritten shows."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all(), "new memory is not filled"
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def run_kernel(case: Case, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Return output and gradient of the projection."""
    from bt_megatron.kernels.token_attention import token_attention  # late: imports triton

    qkv = inputs.qkv.detach().requires_grad_()
    with poisoned_memory():
        out = token_attention(
            qkv,
            positions=case.positions,
            heads=case.heads,
            groups=case.groups,
            rotary=inputs.rotary,
            mask=inputs.mask,
            causal=case.causal,
        )
        (grad,) = torch.autograd.grad(out, qkv, inputs.out_grad)
    return out.detach(), grad


def relative_errors(
    case: Case, inputs: Inputs, out: Tensor, grad: Tensor, *, chunk: int = 4096
) -> tuple[float, float]:
    """Return the norms of the errors of output and gradient over those of the exact ones.

    Columns are compared in chunks and the worst counts, so that one wrong
    column among a million is not averaged away.
    """
    shape = (case.positions, case.columns, -1)
    qkv, out_grad = inputs.qkv.reshape(shape), inputs.out_grad.reshape(shape)
    out, grad = out.reshape(shape), grad.reshape(shape)
    worst = [0.0, 0.0]
    for start in range(0, case.columns, chunk):
        part = slice(start, start + chunk)
        exact_in = qkv[:, part].double().requires_grad_()
        mask = None if inputs.mask is None else inputs.mask[:, part]
        exact = attention_in_float64(case, exact_in, inputs.rotary, mask)
        (exact_grad,) = torch.autograd.grad(exact, exact_in, out_grad[:, part].double())
        for which, (got, expected) in enumerate(((out, exact), (grad, exact_grad))):
            error = (got[:, part] - expected).norm() / expected.norm()
            worst[which] = max(worst[which], error.item() if error.isfinite() else float("inf"))
    return worst[0], worst[1]


def main() -> None:
    """Measure cases from standard input."""
    torch.set_num_threads(1)
    measured = []
    for fields in json.load(sys.stdin):
        case = Case(**fields)
        inputs = make_inputs(case)
        measured.append(relative_errors(case, inputs, *run_kernel(case, inputs)))
    json.dump(measured, sys.stdout)


def as_json(cases: list[Case]) -> str:
    """Return what `main` reads."""
    return json.dumps([asdict(case) for case in cases])


if __name__ == "__main__":
    main()
