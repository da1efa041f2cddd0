# SPDX-License-Identifier: Apache-2.0
"""The floor counts what the paper's sizes say."""

from pathlib import Path

import pytest
import torch

from bt_megatron.config.load import load_model
from bt_megatron.config.params import layer_parameters
from bt_megatron.inference.engine.load import random_model
from bt_megatron.inference.engine.weights import Numbers
from tests.small_models import small_model
from tools.inference_roofline import Ceilings, run_floor, step_floor, work_of

CONFIGS = Path(__file__).parents[3] / "configs" / "model"


def work(section):
    numbers = Numbers(torch.bfloat16)
    device = torch.device("cpu")
    return work_of(
        random_model(section, numbers=numbers, device=device, max_tokens=64), cache_itemsize=2
    )


def test_work_of_a_small_model():
    section = small_model()
    counted = work(section)
    weights = 12 * 32 * 32  # of a layer: 4 h^2 of attention, 8 h^2 of the feed-forward part
    stack, expansion, head = 2 * weights, 2 * 32 * 32, 64 * 32
    assert counted.weight_bytes == 2 * (stack + expansion + 4 * (stack + head))
    assert counted.flops == 2 * (stack + expansion + 5 * stack + 4 * head)
    assert counted.head_flops == 2 * 4 * head
    assert counted.position_bytes == 2 * 2 * 32 * 2
    assert counted.prompt_flops == 2 * (weights + 2 * 32 * 32)


def test_longer_of_reading_and_multiplying_counts():
    counted = work(small_model())
    reading = step_floor(counted, Ceilings(1.0, 1e30, 1e30), rows=1, positions=10)
    assert reading == counted.weight_bytes + 10 * counted.position_bytes
    multiplying = step_floor(counted, Ceilings(1e30, 1.0, 1.0), rows=3, positions=10)
    assert multiplying == pytest.approx(3 * counted.flops)


def test_a_run_is_its_prompts_and_steps():
    counted, ceilings = work(small_model()), Ceilings(1e9, 1e12, 1e12)
    prompts = 2 * 7 * counted.prompt_flops / 1e12
    steps = 3 * step_floor(counted, ceilings, 2, 8 + 1.5)
    assert run_floor(counted, ceilings, 2, 32, 12) == pytest.approx(prompts + steps)


def test_biases_and_norms_are_the_rest_of_a_layer():
    section = load_model(CONFIGS / "block-170m.yaml").block_decoder
    assert section is not None
    width = section.hidden_size
    rest = layer_parameters(section) - 12 * width * width
    assert rest == (3 + 1 + 4 + 1) * width + 2 * 2 * width
