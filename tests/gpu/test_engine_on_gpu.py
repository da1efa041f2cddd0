# SPDX-License-Identifier: Apache-2.0
"""The engine on a GPU: kernels against plain torch, graphs against eager steps and the CPU."""

from dataclasses import replace

import pytest
import torch

from bt_megatron.config.schema import ModelConfig
from bt_megatron.inference.engine.engine import Engine, Settings
from bt_megatron.inference.engine.load import build_model
from bt_megatron.inference.engine.requests import Options
from bt_megatron.inference.engine.rows import Real, Rows, Whole, make_rows
from bt_megatron.inference.engine.weights import Numbers, official_shapes
from tests.small_models import LLAMA, small_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CPU, GPU = torch.device("cpu"), torch.device("cuda")
TWO_HEADS = {"num_attention_heads": 2}
GROUPED = LLAMA | {"num_attention_heads": 4, "num_query_groups": 2, "hidden_size": 64}
MODELS = {
    "prefix": small_model(block_decoder=TWO_HEADS, token_decoder=TWO_HEADS),
    "summation": small_model(
        block_decoder=TWO_HEADS, token_decoder=TWO_HEADS | {"strategy": "summation"}
    ),
    "llama": small_model(
        embedder={"hidden_size": 16}, block_decoder=GROUPED, token_decoder=GROUPED
    ),
}
MODELS["vanilla"] = ModelConfig(
    architecture="vanilla", vocab_size=64, decoder=MODELS["prefix"].block_decoder
)
MODELS["vanilla with groups"] = replace(
    MODELS["vanilla"],
    decoder=replace(MODELS["prefix"].block_decoder, hidden_size=64, num_attention_heads=4,
                    num_query_groups=1),
)  # fmt: skip
PROMPTS = (1, 4, 7, 200, 33, 5, 64, 2, 150, 97)
NEW = (30, 7, 1, 64, 12, 40, 3, 9, 100, 22)
LONGEST = 300
models = pytest.mark.parametrize("name", MODELS)


def random_weights(model: ModelConfig, *, sharp: float = 4.0) -> dict[str, torch.Tensor]:
    """Return weights; a `sharp` head leaves no two tokens nearly equal."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in official_shapes(model).items():
        tensor = torch.randn(shape, generator=generator) * 0.1
        state[name] = tensor + 1 if name.endswith("norm.weight") else tensor
        if "embed_out" in name:
            state[name] = tensor * sharp
    return state


def engine(model, device, *, numbers=None, sharp=4.0, **settings) -> Engine:
    numbers = numbers or Numbers(torch.float32)
    state = random_weights(model, sharp=sharp)
    built = build_model(model, state, numbers=numbers, device=device, max_tokens=LONGEST)
    return Engine(built, Settings(max_rows=8, max_tokens=LONGEST, **settings), device)


def prompts(vocab: int = 64) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(vocab, (n,), generator=generator).tolist() for n in PROMPTS]


@models
@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
def test_graphs_eager_steps_and_the_cpu_write_the_same_tokens(name, sampled):
    options = [Options(max_new_tokens=count) for count in NEW]
    if sampled:
        options = [
            replace(one, temperature=0.9, top_k=20, top_p=0.9, repetition_penalty=1.2, seed=i)
            for i, one in enumerate(options)
        ]
    written = []
    for device, graphs in ((CPU, False), (GPU, False), (GPU, True)):
        done = engine(MODELS[name], device, graphs=graphs).generate(prompts(), options)
        written.append([request.tokens for request in done])
        assert [len(tokens) for tokens in written[-1]] == list(NEW)
    assert written[1] == written[0]
    assert written[2] == written[0]


@models
def test_likelihoods_in_bf16_and_fp8(name):
    model = MODELS[name]
    ids = torch.tensor([prompt[:64] for prompt in prompts() if len(prompt) >= 64])
    exact = engine(model, CPU, sharp=1.0).model.score(ids).logprobs
    for numbers, allowed in ((Numbers(torch.bfloat16), 0.05), (Numbers(torch.bfloat16, True), 0.3)):
        built = engine(model, GPU, numbers=numbers, sharp=1.0)
        score = built.model.score(ids.cuda()).logprobs.cpu()
        assert score.isfinite().all()
        assert (score - exact).abs().mean() < allowed


def test_fp8_cache_changes_little():
    model = MODELS["prefix"]
    numbers = Numbers(torch.bfloat16)
    options = Options(max_new_tokens=1, logprobs=True)
    kept = [
        engine(model, GPU, numbers=numbers, cache_type=kind).generate(prompts(), options)
        for kind in (None, torch.float8_e4m3fn)
    ]
    same = [a.tokens == b.tokens for a, b in zip(*kept, strict=True)]
    assert sum(same) >= len(same) - 2
    for a, b in zip(*kept, strict=True):
        assert abs(a.logprobs[0] - b.logprobs[0]) < 0.3


def random_rows(count: int, vocab: int) -> Rows:
    rows = make_rows(count, tokens=4, pages=2, vocab_size=vocab, device=CPU)
    generator = torch.Generator().manual_seed(2)

    def draw(*size):
        return torch.rand(*size, generator=generator)

    rows.whole[:, Whole.ALIVE] = (draw(count) < 0.9).int()
    rows.whole[:, Whole.REMAINING] = (draw(count) * 3).int() + 1
    rows.whole[:, Whole.END] = -1
    words = torch.randint(-(2**31), 2**31, (count, 2), generator=generator)
    rows.whole[:, Whole.SEED_LOW :] = words.int()
    rows.whole[:, Whole.DRAWN] = (draw(count) * 1000).int()
    rows.whole[:, Whole.TOP_K] = torch.where(draw(count) < 0.5, 0, draw(count) * 50 + 1).int()
    rows.real[:, Real.TEMPERATURE] = torch.where(draw(count) < 0.3, 0.0, draw(count) + 0.3)
    rows.real[:, Real.TOP_P] = torch.where(draw(count) < 0.5, 1.0, draw(count) * 0.9 + 0.05)
    rows.real[:, Real.PENALTY] = torch.where(draw(count) < 0.5, 1.0, 1.3)
    rows.seen.copy_(draw(count, vocab) < 0.3)
    return rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_drawn_tokens_are_those_of_plain_torch(dtype):
    from bt_megatron.inference.engine import torch_ops, triton_ops

    count, vocab = 200, 50_304
    there = random_rows(count, vocab)
    here = Rows(*(getattr(there, name).cuda() for name in Rows.__slots__))
    different = 0
    for place in range(4):
        logits = (torch.randn(count, vocab, generator=torch.Generator().manual_seed(place)) * 3).to(
            dtype
        )
        torch_ops.sample(logits, there, place, plain=False)
        triton_ops.sample(logits.cuda(), here, place, plain=False)
        different += (here.tokens[:, place].cpu() != there.tokens[:, place]).sum().item()
        same = here.tokens[:, place].cpu() == there.tokens[:, place]
        torch.testing.assert_close(
            here.logprobs[:, place].cpu()[same], there.logprobs[same, place], atol=1e-4, rtol=1e-5
        )
    # Sums in another order move the border between two tokens by about 1e-6.
    assert different <= 4
    torch.testing.assert_close(here.whole.cpu(), there.whole)


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("repeats", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cached_attention(width, repeats, dtype):
    from bt_megatron.inference.engine import torch_ops, triton_ops
    from bt_megatron.inference.engine.cache import make_cache
    from bt_megatron.inference.engine.rotary import make_angles
    from bt_megatron.inference.engine.shapes import StackShape

    count, heads, pages = 5, 8, 17
    shape = StackShape(
        layers=1, width=heads * width, heads=heads, groups=heads // repeats, head_dim=width,
        rotary_width=width // 4, rotary_base=1e4, ffn=64, parallel=True, layernorm=True,
        activation="gelu", epsilon=1e-5,
    )  # fmt: skip
    torch.manual_seed(0)
    there = make_rows(count, tokens=4, pages=pages, vocab_size=8, device=CPU)
    there.whole[:, Whole.LENGTH] = torch.tensor([0, 543, 31, 32, 300], dtype=torch.int32)
    there.whole[:, Whole.ALIVE] = 1
    there.table.copy_(1 + torch.randperm(count * pages).view(count, pages))
    cache = make_cache(shape, pages=count * pages + 1, dtype=dtype, device=CPU)[0].normal_()
    on_gpu = cache.cuda()
    here = Rows(*(getattr(there, name).cuda() for name in Rows.__slots__))
    angles = make_angles(shape, 600, CPU)
    mixed = torch.randn(count, shape.mixed).to(dtype)
    expected = torch.empty(count, shape.attended)
    torch_ops.attend_cached(mixed, cache, there, angles, shape, expected)
    got = torch.empty(count, shape.attended, dtype=dtype, device=GPU)
    triton_ops.attend_cached(mixed.cuda(), on_gpu, here, angles.cuda(), shape, got)
    error = (got.cpu().float() - expected).norm() / expected.norm()
    assert error < (1e-5 if dtype == torch.float32 else 1e-2)
    torch.testing.assert_close(on_gpu.cpu().float(), cache.float(), atol=0.02, rtol=0.01)
