# SPDX-License-Identifier: Apache-2.0
"""`kernels.layers` comes to one library on all ranks, or to an error that says what to type."""

from importlib import metadata

import pytest

from bt_megatron.config.schema import DecoderConfig, KernelConfig, LayoutConfig, TokenDecoderConfig
from bt_megatron.errors import ConfigError
from bt_megatron.model.fp8 import has_history
from bt_megatron.model.layer_library import (
    FP32_PRODUCTS,
    choose_layers,
    decide,
    require_fp8,
)
from bt_megatron.model.transformer_config import (
    Computation,
    StackConfig,
    decoder_stack,
    transformer_engine_settings,
)
from tests.ranks import run_ranks

MISSING = "transformer-engine is not installed"
STACK = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("layers", "precision", "problem", "library", "reason"),
    [
        ("auto", "bf16", None, "transformer_engine", "2.20.2"),
        ("auto", "fp32", None, "torch", FP32_PRODUCTS),
        ("auto", "bf16", MISSING, "torch", MISSING),
        ("torch", "bf16", None, "torch", "kernels.layers is torch"),
        ("torch", "bf16", MISSING, "torch", "kernels.layers is torch"),
        ("transformer_engine", "bf16", None, "transformer_engine", "2.20.2"),
    ],
)
def test_choice(
    layers: str,
    precision: str,
    problem: str | None,
    library: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metadata, "version", lambda package: "2.20.2")
    choice = decide(KernelConfig(layers=layers), precision=precision, problems=[problem] * 4)
    assert (choice.library, choice.reason) == (library, reason)
    assert str(choice) == f"{library} ({reason})"


@pytest.mark.parametrize(
    ("layers", "precision", "problems", "words"),
    [
        ("transformer_engine", "bf16", [MISSING], [MISSING, "pip install", "layers=torch"]),
        ("transformer_engine", "fp32", [None], ["TF32", "precision=bf16", "layers=torch"]),
        ("auto", "bf16", [None, MISSING, None], ["1 of 3", "rank 1", MISSING, "layers=torch"]),
    ],
    ids=["not usable", "fp32", "some ranks only"],
)
def test_error_says_what_to_type(
    layers: str, precision: str, problems: list[str | None], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        decide(KernelConfig(layers=layers), precision=precision, problems=problems)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("fp8", ["current", "delayed", "block"])
@pytest.mark.parametrize(
    "problems",
    [[None, "NVIDIA A100-SXM4-80GB: Device compute capability 8.9 or higher required"], [MISSING]],
    ids=["one rank on an A100", "no Transformer Engine"],
)
def test_fp8_is_refused_with_what_to_use(fp8: str, problems: list[str | None]) -> None:
    with pytest.raises(ConfigError) as caught:
        require_fp8(KernelConfig(fp8=fp8), problems=problems)
    rank, problem = next((r, p) for r, p in enumerate(problems) if p)
    for word in (f"kernels.fp8={fp8}: rank {rank}", problem, "Use kernels.fp8=none", "H100"):
        assert word in str(caught.value)
    require_fp8(KernelConfig(), problems=problems)
    require_fp8(KernelConfig(fp8=fp8), problems=[None, None])


def ask_for_fp8() -> str:
    with pytest.raises(ConfigError) as caught:
        choose_layers(KernelConfig(fp8="current"), precision="bf16")
    return str(caught.value)


def test_fp8_is_refused_on_every_rank_without_a_gpu() -> None:
    for message in run_ranks(ask_for_fp8, 2):
        assert "rank 0 cannot multiply in FP8 (no CUDA device is visible)" in message


def test_ranks_without_a_gpu_agree_on_torch() -> None:
    for choice in run_ranks(choose_layers, 2, KernelConfig(), precision="bf16"):
        assert (choice.library, choice.reason) == ("torch", "no CUDA device is visible")


def test_t5_decoder_stays_with_torch() -> None:
    t5 = TokenDecoderConfig(**STACK, strategy="cross_attention", residual="sequential")
    config = decoder_stack(t5, LayoutConfig(), Computation(layers="transformer_engine"))
    assert config.transformer_impl == "local"
    assert not config.bias_dropout_fusion


@pytest.mark.parametrize(
    ("activation", "fused"), [("gelu", False), ("relu", False), ("swiglu", True)]
)
def test_only_the_exact_fused_activation_of_megatron_is_used(activation: str, fused: bool) -> None:
    decoder = DecoderConfig(**STACK, activation=activation)
    assert transformer_engine_settings(decoder)["bias_activation_fusion"] is fused


@pytest.mark.parametrize(
    ("fp8", "form", "recipe"),
    [
        ("none", None, "delayed"),
        ("current", "hybrid", "tensorwise"),
        ("delayed", "hybrid", "delayed"),
        ("block", "e4m3", "blockwise"),
    ],
)
def test_recipe_is_megatrons(fp8: str, form: str | None, recipe: str) -> None:
    settings = transformer_engine_settings(DecoderConfig(**STACK), fp8)
    del settings["apply_rope_fusion"]  # is refused where there is no Transformer Engine
    config = StackConfig(**STACK, **settings)
    assert (config.fp8, config.fp8_recipe) == (form, recipe)
    assert config.disable_parameter_transpose_cache is (fp8 == "none")
    assert has_history(config) is (fp8 == "delayed")
