# SPDX-License-Identifier: Apache-2.0
"""Every kind of model writes what transformers writes, whatever the prompts' lengths."""

from dataclasses import replace

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from bt_megatron.checkpoint.hf_config import gpt_neox_fields
from bt_megatron.config.schema import DecoderConfig, ModelConfig
from bt_megatron.inference.engine.requests import Options
from tests.small_models import KINDS, VOCAB, small_model

RUNNABLE = [kind for kind in KINDS if kind not in ("cross attention", "roberta", "roberta_cls")]
PROMPTS = (1, 2, 3, 4, 5, 9, 13, 40, 7)
NEW = (11, 1, 3, 14, 5, 9, 8, 70, 33)


def prompts_of(lengths, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, VOCAB, (n,), generator=generator).tolist() for n in lengths]


def written_by_transformers(model, prompts, counts, **options):
    rows = []
    for prompt, count in zip(prompts, counts, strict=True):
        output = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
            **options,
        )
        rows.append(output[0, len(prompt) :].tolist())
    return rows


CASES = [(kind, length) for kind in RUNNABLE for length in (4, 3)]


def section(kind, length):
    changes = KINDS[kind]
    if length == 3 and kind != "projection":  # 32 is no multiple of 3: vectors are projected
        changes = {**changes, "embedder": {"hidden_size": 12, "projection": True}}
    return changes


@pytest.mark.parametrize(("kind", "length"), CASES)
def test_greedy_tokens_are_those_of_transformers(make_model, make_engine, kind, length):
    changes = section(kind, length)
    reference = make_model(block_length=length, **changes)
    model = small_model(block_length=length, **changes)
    engine = make_engine(model, reference.state_dict())
    prompts = prompts_of(PROMPTS)
    done = engine.generate(prompts, [Options(max_new_tokens=count) for count in NEW])
    assert [r.tokens for r in done] == written_by_transformers(reference, prompts, NEW)
    assert {r.finish_reason for r in done} == {"length"}


@pytest.mark.parametrize("kind", RUNNABLE)
@torch.no_grad()
def test_likelihoods_are_those_of_transformers(make_model, make_engine, kind):
    reference = make_model(**KINDS[kind])
    engine = make_engine(small_model(**KINDS[kind]), reference.state_dict())
    ids = torch.tensor(prompts_of((32, 32)))
    blocks = ids.view(2, 8, 4)
    logprobs = reference.forward_blocks(blocks).log_softmax(-1)
    expected = logprobs.gather(-1, blocks[:, 1:, :, None]).flatten(1)
    torch.testing.assert_close(engine.model.score(ids).logprobs, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["prefix", "summation"])
def test_logprobs_are_those_of_the_drawn_tokens(make_model, make_engine, kind):
    reference = make_model(**KINDS[kind])
    engine = make_engine(small_model(**KINDS[kind]), reference.state_dict())
    (prompt,) = prompts_of((8,))
    (done,) = engine.generate([prompt], Options(max_new_tokens=12, logprobs=True, top_logprobs=3))
    whole = torch.tensor([[*prompt, *done.tokens]])
    expected = engine.model.score(whole).logprobs[0, 4:]
    torch.testing.assert_close(torch.tensor(done.logprobs), expected, atol=1e-5, rtol=0)
    for token, logprob, best in zip(done.tokens, done.logprobs, done.top, strict=True):
        assert best[0] == (token, pytest.approx(logprob, abs=1e-5))
        assert len(best) == 3


def vanilla(**changes):
    torch.manual_seed(0)
    decoder = DecoderConfig(num_layers=2, hidden_size=32, num_attention_heads=4, **changes)
    model = ModelConfig(architecture="vanilla", vocab_size=VOCAB, decoder=decoder)
    config = GPTNeoXConfig(**gpt_neox_fields(model), eos_token_id=None)
    reference = GPTNeoXForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    # transformers calls the head by another name than the files do
    state = {n.replace("lm_head", "embed_out"): w for n, w in reference.state_dict().items()}
    return model, reference, state


@pytest.mark.parametrize("residual", ["parallel", "sequential"])
def test_vanilla_models_too(make_engine, residual):
    model, reference, state = vanilla(residual=residual)
    engine = make_engine(model, state)
    prompts = prompts_of(PROMPTS)
    done = engine.generate(prompts, [Options(max_new_tokens=count) for count in NEW])
    assert [r.tokens for r in done] == written_by_transformers(reference, prompts, NEW)
    ids = torch.tensor(prompts_of((30, 30)))
    with torch.no_grad():
        logprobs = reference(ids).logits[:, :-1].log_softmax(-1)
    expected = logprobs.gather(-1, ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(engine.model.score(ids).logprobs, expected, atol=1e-5, rtol=0)


def test_groups_of_queries_share_keys(make_engine):
    """Groups of a vanilla model equal as many heads with copied keys and values."""
    model, _, state = vanilla()
    grouped = dict(state)
    for index in range(2):
        for part in ("weight", "bias"):
            name = f"gpt_neox.layers.{index}.attention.query_key_value.{part}"
            heads = state[name].unflatten(0, (4, 3, 8))  # [a, q k v, d, ...]
            shared = heads.clone()
            shared[1::2, 1:] = heads[0::2, 1:]
            state[name] = shared.flatten(0, 2)
            pairs = shared.unflatten(0, (2, 2))  # [g, 2, q k v, d, ...]
            rows = [pairs[:, 0, 0], pairs[:, 1, 0], pairs[:, 0, 1], pairs[:, 0, 2]]
            grouped[name] = torch.stack(rows, dim=1).flatten(0, 2)
    assert model.decoder is not None
    with_groups = replace(model, decoder=replace(model.decoder, num_query_groups=2))
    written = []
    for section, weights in ((model, state), (with_groups, grouped)):
        done = make_engine(section, weights).generate(prompts_of(PROMPTS), Options())
        written.append([request.tokens for request in done])
    assert written[0] == written[1]


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_repetition_penalty_and_end_token(make_model, make_engine, penalty):
    reference = make_model()
    engine = make_engine(small_model(), reference.state_dict())
    prompts = prompts_of((6, 8, 13))
    free = written_by_transformers(reference, prompts, (40,) * 3, repetition_penalty=penalty)
    end = free[0][5]
    expected = written_by_transformers(
        reference, prompts, (40,) * 3, repetition_penalty=penalty, eos_token_id=end
    )
    options = Options(max_new_tokens=40, repetition_penalty=penalty, end_id=end)
    done = engine.generate(prompts, options)
    assert [request.tokens for request in done] == expected
    assert done[0].finish_reason == "end"
