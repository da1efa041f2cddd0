# SPDX-License-Identifier: Apache-2.0
"""The exported modeling file against outputs of the reference implementation, float32.

Logits are compared where the reference's are meaningful: the predicted token is real
and the block that predicts it is not padding only (there the reference's eager
attention leaks future blocks).
"""

import json
from functools import cache

import pytest
import torch
from safetensors.torch import load_file

from bt_megatron.checkpoint.hf_config import block_fields
from bt_megatron.checkpoint.names import from_official, to_official
from bt_megatron.checkpoint.uptrain import partition
from bt_megatron.inference.modeling_block_transformer import (
    BlockTransformerConfig,
    BlockTransformerForCausalLM,
)
from tests.golden import (
    BLOCK_MODELS,
    REFERENCE,
    UNUSED,
    Golden,
    block_model,
    load_golden,
    vanilla_model,
)

LOGITS = 1e-5
LOSS = 2e-6  # one unit in the last place of a float32 near 8 is 9.5e-7
FORWARD_CASES = [
    (name, case)
    for name in BLOCK_MODELS
    for case in ("plain", "packed", "leftpad", "leftpad_full_blocks")
    if name != "lookup_prefix_b1_p1" or case == "plain"
]
LENGTHS = (9, 10, 11, 12)


@cache
def reference(name: str) -> tuple[Golden, BlockTransformerForCausalLM]:
    golden = load_golden(name)
    model = BlockTransformerForCausalLM(BlockTransformerConfig(**block_fields(golden.model)))
    state = {key: value for key, value in golden.state.items() if key != UNUSED}
    model.load_state_dict(state, strict=True)
    return golden, model.eval()


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = LOGITS) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize(("name", "case"), FORWARD_CASES)
@torch.no_grad()
def test_forward_blocks(name, case):
    golden, model = reference(name)
    given = golden.case(case)
    ids, mask = given["input_ids"], given["attention_mask"].bool()
    real_context = given["block_attention_mask"][:, :-1].bool()
    compared = mask[:, 1:] & real_context[..., None]
    logits = model.forward_blocks(ids, mask)
    assert logits.shape == given["logits"].shape
    assert compared.any()
    assert_close(logits[compared], given["logits"][compared])


@pytest.mark.parametrize(("name", "case"), FORWARD_CASES)
@torch.no_grad()
def test_intermediate_states(name, case):
    golden, model = reference(name)
    given = golden.case(case)
    mask = given["attention_mask"].bool()
    block_mask = given["block_attention_mask"].bool()
    embeddings = model.embed_blocks(given["input_ids"], mask)
    assert_close(embeddings[block_mask], given["block_embeddings"][block_mask])
    context = model.decode_blocks(embeddings, block_mask)
    assert_close(context[block_mask], given["context_embeddings"][block_mask])
    expanded = model.token_decoder.expansion_layer(context)
    assert_close(expanded[block_mask], given["expanded"][block_mask])


@pytest.mark.parametrize(
    ("name", "case"), [pair for pair in FORWARD_CASES if pair[1] != "leftpad_full_blocks"]
)
@torch.no_grad()
def test_loss(name, case):
    golden, model = reference(name)
    given = golden.case(case)
    ids, mask = given["input_ids"].flatten(1), given["attention_mask"].flatten(1)
    labels = ids.masked_fill(mask == 0, -100)
    loss = model(ids, attention_mask=mask, labels=labels).loss
    assert_close(loss.view(1), given["loss"], LOSS)


def generation_cases(key: str) -> list[tuple[str, str]]:
    # The reference pads a RoBERTa prompt with id 1, training with 0: see the test below.
    return [
        (name, case)
        for name in BLOCK_MODELS
        for case in ("gen_aligned", "gen_p10_n12", "gen_leftpad")
        if f"{case}.{key}" in load_golden(name).tensors
        and not (name.startswith("roberta") and case == "gen_p10_n12")
    ]


def run_generation(name, case, *, tokens, **options):
    golden, model = reference(name)
    given = golden.case(case)
    mask = torch.ones_like(given["prompt"])
    if case == "gen_leftpad":
        mask = given["prompt_attention_mask"].flatten(1)
    output = model.generate(
        given["prompt"],
        attention_mask=mask,
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )
    return given, output.sequences, torch.stack(output.logits, dim=1)


@pytest.mark.parametrize(("name", "case"), generation_cases("consistent_new_tokens"))
def test_generation_follows_training(name, case):
    tokens = load_golden(name).case(case)["consistent_new_tokens"].shape[1]
    given, sequences, logits = run_generation(name, case, tokens=tokens)
    new = sequences[:, given["prompt"].shape[1] :]
    assert torch.equal(new, given["consistent_new_tokens"])
    assert_close(logits, given["consistent_step_logits"])


@pytest.mark.parametrize(("name", "case"), generation_cases("consistent_new_tokens"))
def test_generation_without_a_cache(name, case):
    tokens = load_golden(name).case(case)["consistent_new_tokens"].shape[1]
    given, sequences, logits = run_generation(name, case, tokens=tokens, use_cache=False)
    assert torch.equal(sequences[:, -tokens:], given["consistent_new_tokens"])
    assert_close(logits, given["consistent_step_logits"])


@pytest.mark.parametrize(("name", "case"), generation_cases("reference_output"))
def test_generation_with_official_positions(name, case):
    given = load_golden(name).case(case)
    tokens = given["reference_output"].shape[1] - given["prompt"].shape[1]
    given, sequences, logits = run_generation(
        name, case, tokens=tokens, official_generate_positions=True
    )
    assert torch.equal(sequences, given["reference_output"])
    assert_close(logits, given["reference_step_logits"])


@pytest.mark.parametrize("name", [name for name in BLOCK_MODELS if name.startswith("roberta")])
def test_roberta_prompt_padded_as_the_reference_does(name):
    golden, model = reference(name)
    given = golden.case("gen_p10_n12")
    prompt = given["prompt_blocks"].flatten(1)
    assert prompt[0, 0] == 1
    output = model.generate(
        prompt,
        attention_mask=given["prompt_attention_mask"].flatten(1),
        max_new_tokens=12,
        do_sample=False,
        pad_token_id=0,
    )
    assert torch.equal(output[:, prompt.shape[1] :], given["consistent_new_tokens"])


@pytest.mark.parametrize(
    "name", ["lookup_prefix_b4_p2", "lookup_summation_b4"], ids=["prefix", "summation"]
)
def test_as_many_tokens_as_asked(name):
    golden, model = reference(name)
    given = golden.case("gen_early_stop")
    asked = golden.config["generation"]["gen_early_stop"]["max_length"]
    output = model.generate(
        given["prompt"],
        max_length=asked,
        do_sample=False,
        pad_token_id=0,
        official_generate_positions=True,
    )
    returned = given["reference_output"]
    assert returned.shape[1] < asked
    assert output.shape[1] == asked
    assert torch.equal(output[:, : returned.shape[1]], returned)


@pytest.mark.parametrize(
    "name", ["lookup_prefix_b4_p2", "lookup_summation_b4", "roberta_cls_prefix_b4_p1"]
)
def test_end_of_text_stops_each_row(name):
    golden, model = reference(name)
    given = golden.case("gen_eos")
    eos = golden.config["generation"]["gen_eos"]["eos_token_id"]
    output = model.generate(
        given["prompt"],
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=eos,
        pad_token_id=0,
        official_generate_positions=True,
    )
    length = given["prompt"].shape[1]
    stopped = 0
    for ours, theirs in zip(output[:, length:], given["reference_output"][:, length:], strict=True):
        ends = (theirs == eos).nonzero()
        end = ends[0].item() + 1 if len(ends) else len(theirs)
        stopped += len(ends) > 0
        assert torch.equal(ours[:end], theirs[: min(end, len(ours))])
        assert (ours[end:] == 0).all()
    assert stopped


@pytest.mark.parametrize("length", LENGTHS)
@torch.no_grad()
def test_evaluation_wrappers(length):
    _, model = reference("lookup_prefix_b4_p2")
    given = load_file(REFERENCE / "eval_wrappers_lookup_prefix_b4_p2" / "tensors.safetensors")
    ids = given[f"len{length}.input"]
    mask = wrapper_mask(ids)
    # The last entry predicts what follows the last token; the wrapper has it if that is real.
    predicts_real = torch.cat([mask[:, 1:], mask[:, -1:]], dim=1).bool()
    padded = model(ids, attention_mask=mask, left_padding=3).logits
    assert_close(padded[predicts_real], given[f"len{length}.logits_pad"][predicts_real])
    plain = model(ids, attention_mask=mask).logits
    predicts_real = predicts_real[:, 3:]
    assert_close(plain[:, 3:][predicts_real], given[f"len{length}.logits_nopad"][predicts_real])
    assert (plain[:, :3] == 0).all()


def wrapper_mask(ids: torch.Tensor) -> torch.Tensor:
    """Return the mask of the reference's wrapper: zeros are pads, but for the first of a row."""
    zeros = ids == 0
    first = zeros & (zeros.cumsum(1) == 1)
    return (~zeros | first).long()


@torch.no_grad()
def test_uptrained_model():
    folder = REFERENCE / "uptrain_partition_b4_p2"
    config = json.loads((folder / "config.json").read_text())
    target = block_model({"vocab_size": 512, **config["spec"]})
    vanilla = vanilla_model(config["vanilla"])
    given = load_file(folder / "tensors.safetensors")
    weights = from_official(load_file(folder / "vanilla_state_dict.safetensors"), vanilla)
    state = to_official(partition(weights, vanilla, target), target)
    norm = "block_decoder.gpt_neox.final_layer_norm"
    for part in ("weight", "bias"):  # stays as it was in the reference's random model
        state[f"{norm}.{part}"] = given[f"state.{norm}.{part}"]
    model = BlockTransformerForCausalLM(BlockTransformerConfig(**block_fields(target))).eval()
    model.load_state_dict(state, strict=True)
    ids = given["plain.input_ids"]
    assert_close(model.forward_blocks(ids), given["plain.logits"])
    assert_close(
        model(ids.flatten(1), labels=ids.flatten(1)).loss.view(1), given["plain.loss"], LOSS
    )
