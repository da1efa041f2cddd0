# SPDX-License-Identifier: Apache-2.0
"""Scores and continuations on a GPU against those on the CPU."""

import numpy as np
import pytest
import torch

from bt_megatron.evaluation.exported_model import ExportedModel
from bt_megatron.evaluation.likelihood import Request
from tests.small_export import write_small_export

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TOLERANCES = {"fp32": 1e-4, "bf16": 0.2}
"""Largest difference of a log-probability; a logit near 8 has steps of 0.03 in bf16."""


@pytest.mark.parametrize("name", ["lookup_prefix_b4_p2", "vanilla_neox"])
def test_a_gpu_says_what_the_cpu_says(tmp_path, monkeypatch, name):
    import transformers.dynamic_module_utils as modules

    monkeypatch.setattr(modules, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = write_small_export(tmp_path / "model", name)
    generator = np.random.default_rng(0)
    texts = [generator.integers(1, 300, length).tolist() for length in range(2, 40)]
    requests = [Request(text[: len(text) // 2], text[len(text) // 2 :]) for text in texts]
    reference = ExportedModel(folder, device="cpu", dtype="fp32")
    expected = reference.score(requests)
    for dtype, tolerance in TOLERANCES.items():
        model = ExportedModel(folder, dtype=dtype)
        assert model.device == "cuda"
        for found, wanted in zip(model.score(requests), expected, strict=True):
            np.testing.assert_allclose(
                found.log_probabilities, wanted.log_probabilities, atol=tolerance, rtol=0
            )
    prompts = [text[:12] for text in texts if len(text) >= 12]
    in_float32 = ExportedModel(folder, dtype="fp32")
    written = in_float32.generate(prompts, max_new_tokens=8)
    assert written == reference.generate(prompts, max_new_tokens=8)
