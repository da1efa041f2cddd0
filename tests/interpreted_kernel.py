# SPDX-License-Identifier: Apache-2.0
"""A token decoder with its kernel, interpreted on the CPU, beside the plain one.

    TRITON_INTERPRET=1 python -m tests.interpreted_kernel

prints the difference of the losses and the largest one of a gradient, by kind of model.
Triton decides when it is imported whether it interprets, so that takes a process of its own.
"""

import json

import torch
import torch.distributed as dist

from bt_megatron.parallel import cpu_backend

cpu_backend.install()

from bt_megatron.config.geometry import layer_letters  # noqa: E402
from bt_megatron.config.schema import LayoutConfig, ModelConfig  # noqa: E402
from bt_megatron.model.build import build_stage  # noqa: E402
from bt_megatron.model.initialize import initialize_weights  # noqa: E402
from bt_megatron.model.transformer_config import Computation  # noqa: E402
from bt_megatron.parallel.groups import build_groups  # noqa: E402
from bt_megatron.parallel.layout import parse_stages  # noqa: E402
from tests.small_models import LLAMA, small_model  # noqa: E402

WIDE = {
    "num_layers": 1,
    "hidden_size": 64,
    "num_attention_heads": 4,
}  # heads 16 wide, as the kernel needs them
MODELS = {
    "prefix": small_model(token_decoder=WIDE),
    "long prefix": small_model(token_decoder=WIDE | {"prefix_length": 5}),
    "summation": small_model(token_decoder=WIDE | {"strategy": "summation"}),
    "llama": small_model(token_decoder=WIDE | LLAMA),
    "no rotation": small_model(token_decoder=WIDE | {"rotary_fraction": 0.0}),
}


def run(model: ModelConfig, *, kernel: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return losses and gradients of one batch with pads in it."""
    stages = parse_stages(layer_letters(model))
    stage = build_stage(model, LayoutConfig(), stages, Computation())
    stage.token_stack.token_kernel = kernel
    initialize_weights(stage, model, seed=1)
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.vocab_size, (2, 16), generator=draw)
    targets = torch.randint(model.vocab_size, (2, 16), generator=draw)
    real = torch.rand(2, 16, generator=draw) > 0.2
    losses = stage(tokens, torch.ones_like(real), targets, real)
    (losses * real).sum().backward()
    named = stage.named_parameters()
    return losses.detach(), {name: p.grad for name, p in named if p.grad is not None}


def difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the norm of the difference over that of the expected values."""
    return float((got - expected).norm() / expected.norm())


def main() -> None:
    """Print the differences."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    build_groups(LayoutConfig(), seed=0)
    found = {}
    for name, model in MODELS.items():
        plain, gradients = run(model, kernel=False)
        losses, others = run(model, kernel=True)
        assert gradients.keys() == others.keys()
        worst = max(difference(others[key], gradients[key]) for key in gradients)
        found[name] = (difference(losses, plain), worst)
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
