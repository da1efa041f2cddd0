# SPDX-License-Identifier: Apache-2.0
"""The exported model keeps its promises for every kind of layer; outputs: tests/parity."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria

from bt_megatron.checkpoint.names import entries
from bt_megatron.inference.modeling_block_transformer import BlockTransformerCache
from tests.small_models import KINDS, VOCAB, small_model

kinds = pytest.mark.parametrize("kind", KINDS)
GREEDY = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": 11}


def ids_of(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCAB, shape, generator=generator)


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-5)


@kinds
def test_names_are_the_official_ones(make_model, kind):
    table = entries(small_model(**KINDS[kind]))
    expected = {
        name: shape
        for entry in table
        for name, shape in zip(
            entry.official,
            entry.transform.shapes(entry.shape) * (len(entry.official) if entry.is_tied else 1),
            strict=True,
        )
    }
    state = make_model(**KINDS[kind]).state_dict()
    assert {name: tuple(weight.shape) for name, weight in state.items()} == expected


@kinds
@torch.no_grad()
def test_whole_sequences_agree_with_blocks(make_model, kind):
    model = make_model(**KINDS[kind])
    ids = ids_of(2, 24)
    flat = model(ids).logits
    assert (flat[:, :3] == 0).all()
    assert_close(flat[:, 3:-1], model.forward_blocks(ids.view(2, 6, 4)).flatten(1, 2))


@kinds
@pytest.mark.parametrize("left_padding", [0, 2, 3])
@torch.no_grad()
def test_nothing_leaks_from_the_future(make_model, kind, left_padding):
    model = make_model(**KINDS[kind])
    ids = ids_of(1, 17)
    logits = model(ids, left_padding=left_padding).logits
    for cut in (5, 8, 11, 16):
        changed = torch.cat([ids[:, :cut], ids_of(1, 17 - cut, seed=9)], dim=1)
        assert_close(model(changed, left_padding=left_padding).logits[:, :cut], logits[:, :cut])
        shorter = model(ids[:, :cut], left_padding=left_padding).logits
        assert_close(shorter, logits[:, :cut])


@kinds
@torch.no_grad()
def test_blocks_of_pads_are_not_seen(make_model, kind):
    model = make_model(**KINDS[kind])
    ids, mask = ids_of(1, 20), torch.ones(1, 20, dtype=torch.long)
    mask[:, :8] = 0
    logits = model(ids, attention_mask=mask).logits
    assert torch.isfinite(logits).all()
    other = torch.cat([ids_of(1, 8, seed=5), ids[:, 8:]], dim=1)
    # Token 11 is the last of the first real block; from there on, nothing depends on pads.
    assert_close(model(other, attention_mask=mask).logits[:, 11:], logits[:, 11:])
    assert_close(model(ids[:, 8:]).logits[:, 3:], logits[:, 11:])


@kinds
def test_generation_equals_whole_sequences(make_model, kind):
    model = make_model(**KINDS[kind])
    prompt = ids_of(3, 10)
    cached = model.generate(prompt, return_dict_in_generate=True, output_logits=True, **GREEDY)
    whole = model(cached.sequences, left_padding=2).logits[:, 9:-1]
    assert_close(torch.stack(cached.logits, dim=1), whole)
    assert torch.equal(cached.sequences[:, 10:], whole.argmax(-1))
    assert torch.equal(model.generate(prompt, use_cache=False, **GREEDY), cached.sequences)


@pytest.mark.parametrize("kind", ["prefix", "summation", "cross attention", "roberta_cls"])
@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(lengths=st.lists(st.integers(1, 13), min_size=2, max_size=4), new=st.integers(1, 9))
def test_a_batch_gives_what_each_prompt_gives_alone(make_model, kind, lengths, new):
    model = make_model(**KINDS[kind])
    longest = max(lengths)
    prompts = [ids_of(length, seed=index) for index, length in enumerate(lengths)]
    batch, mask = torch.zeros(2, len(lengths), longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        batch[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    options = {**GREEDY, "max_new_tokens": new, "return_dict_in_generate": True}
    together = model.generate(batch, attention_mask=mask, output_logits=True, **options)
    for row, prompt in enumerate(prompts):
        alone = model.generate(prompt[None], output_logits=True, **options)
        expected = torch.cat(alone.logits)
        assert_close(torch.stack(together.logits, dim=1)[row], expected)
        assert together.sequences.shape[1] == longest + new


@pytest.mark.parametrize("block_length", [1, 2, 3, 8])
@pytest.mark.parametrize("prompt", [1, 5, 8])
def test_any_block_length_and_prompt_length(make_model, block_length, prompt):
    changes = {"embedder": {"hidden_size": 7, "projection": True}}
    model = make_model(block_length=block_length, **changes)
    output = model.generate(ids_of(1, prompt), **GREEDY)
    pads = -prompt % block_length
    expected = model(output, left_padding=pads).logits[:, prompt - 1 : -1].argmax(-1)
    assert torch.equal(output[:, prompt:], expected)


def test_prompt_that_ends_inside_a_block(make_model):
    model = make_model()
    prompt = ids_of(2, 10)
    output = model.generate(prompt, left_padding=0, **GREEDY)
    assert torch.equal(output[:, 10:], model(output).logits[:, 9:-1].argmax(-1))


def test_prompt_without_a_whole_block(make_model):
    with pytest.raises(ValueError, match=r"0 pads and 3 tokens do not fill .* pass left_padding=1"):
        make_model().generate(ids_of(1, 3), left_padding=0, **GREEDY)


def test_pads_in_front_have_the_training_id(make_model):
    model = make_model()
    prompt = ids_of(1, 6)
    model.config.pad_token_id = 7
    by_model = model.generate(prompt, **GREEDY)
    padded = torch.cat([torch.full((1, 2), 7), prompt], dim=1)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]])
    by_hand = model.generate(padded, attention_mask=mask, **GREEDY)
    assert torch.equal(by_model, by_hand[:, 2:])
    model.config.pad_token_id = 8
    assert not torch.equal(model(prompt, left_padding=2).logits, model(padded).logits[:, 2:])


def test_length_counts_what_the_user_gave(make_model):
    model = make_model()
    for asked in (7, 8, 9, 13):
        output = model.generate(ids_of(1, 6), max_length=asked, do_sample=False)
        assert output.shape[1] == asked


def test_official_positions_differ_only_with_long_prefixes(make_model):
    def logits(**changes):
        model = make_model(**changes)
        options = {**GREEDY, "return_dict_in_generate": True, "output_logits": True}
        ours = model.generate(ids_of(1, 8), **options)
        model.config.official_generate_positions = True
        theirs = model.generate(ids_of(1, 8), **options)
        return ours.logits[0], theirs.logits[0]

    ours, theirs = logits(token_decoder={"prefix_length": 3})
    assert (ours - theirs).abs().max() > 1e-3
    torch.testing.assert_close(*logits(token_decoder={"prefix_length": 1}))
    torch.testing.assert_close(*logits(token_decoder={"strategy": "summation"}))


def test_official_positions_need_the_cache(make_model):
    with pytest.raises(ValueError, match="needs use_cache=True"):
        make_model().generate(
            ids_of(1, 8), use_cache=False, official_generate_positions=True, **GREEDY
        )


def test_end_of_text_stops_rows_one_by_one(make_model):
    model = make_model()
    prompt = ids_of(4, 9)
    free = model.generate(prompt, **GREEDY)[:, 9:]
    eos = free[0, 4].item()
    stopped = model.generate(prompt, eos_token_id=eos, **GREEDY)[:, 9:]
    for row, expected in zip(stopped, free, strict=True):
        ends = (expected == eos).nonzero()
        end = int(ends[0]) + 1 if len(ends) else len(expected)
        assert torch.equal(row[:end], expected[: len(row)][:end])
        assert (row[end:] == 0).all()


def test_sampling_repeats_with_the_seed(make_model):
    model = make_model()
    options = {**GREEDY, "do_sample": True, "top_k": 20, "top_p": 0.95, "temperature": 0.8}
    outputs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        outputs.append(model.generate(ids_of(2, 5), num_return_sequences=2, **options))
    assert outputs[0].shape == (4, 16)
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_processors_see_the_user_s_tokens_only(make_model):
    seen = []

    class Watch(LogitsProcessor):
        def __call__(self, input_ids, scores):
            seen.append(input_ids.clone())
            return scores

    prompt = ids_of(1, 6)
    output = make_model().generate(
        prompt, logits_processor=LogitsProcessorList([Watch()]), repetition_penalty=1.3, **GREEDY
    )
    assert torch.equal(seen[0], prompt)
    assert torch.equal(seen[-1], output[:, :-1])


def test_repetition_penalty(make_model):
    output = make_model().generate(ids_of(1, 6), repetition_penalty=1e6, **GREEDY)
    assert len(set(output[0].tolist())) == len(set(ids_of(1, 6)[0].tolist())) + 11


def test_streamer_and_stopping_criteria(make_model):
    class Collect:
        def __init__(self):
            self.tokens = []

        def put(self, value):
            self.tokens += value.flatten().tolist()

        def end(self):
            self.tokens.append("end")

    class AfterThree(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.full((1,), input_ids.shape[1] >= 9)

    streamer = Collect()
    output = make_model().generate(
        ids_of(1, 6), streamer=streamer, stopping_criteria=[AfterThree()], **GREEDY
    )
    assert output.shape == (1, 9)
    assert streamer.tokens == [*output[0].tolist(), "end"]


@pytest.mark.parametrize("kind", ["prefix", "summation", "cross attention"])
def test_beam_search_equals_the_one_without_a_cache(make_model, kind):
    model = make_model(**KINDS[kind])
    options = {**GREEDY, "num_beams": 3, "num_return_sequences": 2}
    cached = model.generate(ids_of(2, 7), **options)
    assert torch.equal(cached, model.generate(ids_of(2, 7), use_cache=False, **options))


def test_assisted_generation_is_refused(make_model):
    with pytest.raises(ValueError, match="only supports"):
        make_model().generate(ids_of(1, 8), prompt_lookup_num_tokens=3, **GREEDY)


def test_misspelt_arguments_are_reported(make_model):
    with pytest.raises(ValueError, match="left_paddings"):
        make_model().generate(ids_of(1, 8), left_paddings=3, **GREEDY)


@kinds
def test_a_conversation_goes_on_from_its_cache(make_model, kind):
    model = make_model(**KINDS[kind])
    options = {**GREEDY, "return_dict_in_generate": True, "output_logits": True}
    first = model.generate(ids_of(2, 6), **options)
    longer = torch.cat([first.sequences, ids_of(2, 9, seed=4)], dim=1)
    cache = first.past_key_values
    assert isinstance(cache, BlockTransformerCache)
    assert cache.get_seq_length() == first.sequences.shape[1] - 1
    resumed = model.generate(longer, past_key_values=cache, **options)
    whole = model(resumed.sequences, left_padding=2).logits[:, longer.shape[1] - 1 : -1]
    assert_close(torch.stack(resumed.logits, dim=1), whole)


def test_prefill_skips_the_token_decoder(make_model):
    model = make_model()
    rows = []
    model.token_decoder.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape[0]))
    blocks = []
    model.block_decoder.register_forward_pre_hook(lambda _, inputs: blocks.append(inputs[0].shape))
    model.generate(ids_of(2, 40), **GREEDY)
    assert rows == [2] * 11  # one call a token, never for the prompt's blocks
    assert [shape[1] for shape in blocks] == [10, 1, 1]


@torch.no_grad()
def test_loss_counts_predicted_labels_only(make_model):
    model = make_model()
    ids = ids_of(2, 16)
    labels = ids.clone()
    labels[:, 10:12] = -100
    output = model(ids, labels=labels)
    scores = output.logits.log_softmax(-1)[:, 3:-1].gather(-1, ids[:, 4:, None])[..., 0]
    counted = labels[:, 4:] != -100
    torch.testing.assert_close(output.loss, -scores[counted].mean())
    labels[:, :4] = 3  # the first block is never predicted
    torch.testing.assert_close(model(ids, labels=labels).loss, output.loss)


@torch.no_grad()
def test_padding_in_front_comes_from_the_configuration(make_model):
    model = make_model()
    ids = ids_of(2, 14)
    asked = model(ids, labels=ids, left_padding=3)
    plain = model(ids, labels=ids)
    model.config.left_padding = 3
    default = model(ids, labels=ids)
    assert torch.equal(default.logits, asked.logits)
    assert torch.equal(default.loss, asked.loss)
    assert torch.equal(model(ids, labels=ids, left_padding=0).logits, plain.logits)
    cached = model(ids, use_cache=True)
    assert_close(cached.logits[:, -1], default.logits[:, -1])
    assert not torch.equal(default.logits, plain.logits)


@torch.no_grad()
def test_logits_to_keep(make_model):
    model = make_model()
    ids = ids_of(2, 14)
    whole = model(ids).logits
    for keep in (1, 4, 13, 14):
        assert_close(model(ids, logits_to_keep=keep).logits, whole[:, -keep:])


@torch.no_grad()
def test_sequences_shorter_than_a_block(make_model):
    logits = make_model()(ids_of(2, 3)).logits
    assert logits.shape == (2, 3, VOCAB)
    assert (logits == 0).all()


def test_tuple_instead_of_an_object(make_model):
    output = make_model()(ids_of(1, 8), return_dict=False)
    assert isinstance(output, tuple)
    assert output[0].shape == (1, 8, VOCAB)


@kinds
def test_bfloat16(make_model, kind):
    model = make_model(**KINDS[kind]).bfloat16()
    assert model(ids_of(1, 8)).logits.dtype == torch.bfloat16
    assert model.generate(ids_of(2, 9), **GREEDY).shape == (2, 20)


def test_gradients_reach_every_weight(make_model):
    for kind, changes in KINDS.items():
        model = make_model(**changes).train()
        ids = ids_of(2, 16)
        model(ids, labels=ids).loss.backward()
        without = [name for name, weight in model.named_parameters() if weight.grad is None]
        assert without == [], kind


def test_long_sequences_use_the_fused_kernel_with_the_same_result(make_model, monkeypatch):
    from bt_megatron.inference import modeling_block_transformer as modeling

    model = make_model()
    ids = ids_of(1, 80)
    short = model(ids).logits
    monkeypatch.setattr(modeling, "SHORT_ATTENTION", 0)
    assert_close(model(ids).logits, short)
