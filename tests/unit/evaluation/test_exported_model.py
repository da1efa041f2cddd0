# SPDX-License-Identifier: Apache-2.0
"""Scores against a computation that shares nothing with them: token by token, through the
cache of generation, which never sees a token that is still to come."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from bt_megatron.errors import ConversionError
from bt_megatron.evaluation.exported_model import ExportedModel, read_tokenizer
from bt_megatron.evaluation.likelihood import Request
from tests.golden import BLOCK_MODELS
from tests.small_export import MAX_LENGTH

MODELS = [(name, padded) for name in BLOCK_MODELS for padded in (True, False)]
TOLERANCE = {"atol": 2e-5, "rtol": 0}


def tokens_of(count, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(1, 300, count).tolist()


@torch.no_grad()
def one_by_one(folder, text, *, left_padding):
    """Return the log-probability of each token of a text but the first."""
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    k, vocab = getattr(model.config, "block_length", 1), model.config.vocab_size
    options = (
        {} if k == 1 and model.config.model_type == "gpt_neox" else {"left_padding": left_padding}
    )
    logs = []
    for index in range(1, len(text)):
        if left_padding + index < k:
            logs.append(-math.log(vocab))
            continue
        known = torch.tensor([text[:index]])
        logits = model(known, use_cache=bool(options), **options).logits[0, -1]
        logs.append(logits.double().log_softmax(-1)[text[index]].item())
    return np.array(logs)


@pytest.mark.parametrize(("name", "padded"), [*MODELS, ("vanilla_neox", False)])
def test_scores_are_those_of_one_token_at_a_time(small_export, name, padded):
    folder = small_export(name, padded=padded)
    model = ExportedModel(folder)
    lengths = ((1, 1), (1, 4), (2, 9), (5, 3), (7, 14), (12, 1), (3, 2))
    requests = []
    for seed, (context, continuation) in enumerate(lengths):
        text = tokens_of(context + continuation, seed)
        requests.append(Request(text[:context], text[context:]))

    done = []
    scores = model.score(requests, done.append)

    assert sum(done) == len(requests)
    for request, found in zip(requests, scores, strict=True):
        expected = one_by_one(
            folder, [*request.context, *request.continuation], left_padding=model.left_padding
        )[len(request.context) - 1 :]
        np.testing.assert_allclose(found.log_probabilities, expected, **TOLERANCE)
        assert found.log_likelihood == pytest.approx(expected.sum(), abs=1e-3)


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "not padded"])
def test_tokens_that_no_block_predicts_are_uniform_and_never_the_best(small_export, padded):
    model = ExportedModel(small_export(padded=padded))
    (found,) = model.score([Request([0], [0, 0, 0, 0, 0])])

    unpredicted = 0 if padded else model.block_length - 1
    uniform = np.isclose(found.log_probabilities, -math.log(model.vocab_size), atol=1e-6)
    assert uniform.tolist() == [True] * unpredicted + [False] * (5 - unpredicted)
    assert not found.is_best[:unpredicted].any()


def test_all_first_tokens_together_have_probability_one(small_export):
    model = ExportedModel(small_export())
    text = tokens_of(6)
    every = model.score([Request(text, [token]) for token in range(model.vocab_size)])
    total = sum(math.exp(found.log_likelihood) for found in every)

    assert total == pytest.approx(1.0, abs=1e-5)
    best = [found.is_greedy for found in every]
    likeliest = np.argmax([found.log_likelihood for found in every])
    assert best.index(True) == likeliest
    assert sum(best) == 1


def test_what_comes_later_changes_nothing(small_export):
    """Also where the text begins with the end-of-text token, which is the id of pads."""
    model = ExportedModel(small_export())
    text = tokens_of(20)
    for cut in (1, 2, 5, 8, 13):
        known, other = text[:cut], tokens_of(20 - cut, seed=1)
        first, second = model.score([Request([0], text), Request([0], known + other)])
        np.testing.assert_array_equal(first.log_probabilities[:cut], second.log_probabilities[:cut])


def test_batches_change_nothing(small_export):
    requests = [Request(tokens_of(n, n), tokens_of(n % 5 + 1, n)) for n in range(1, 15)]
    sizes = (1, 40, 100_000)  # each alone, a few, all
    alone, *others = (
        ExportedModel(small_export(), batch_tokens=size).score(requests) for size in sizes
    )
    for together in others:
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_allclose(one.log_probabilities, other.log_probabilities, **TOLERANCE)
            np.testing.assert_array_equal(one.is_best, other.is_best)


def test_long_contexts_are_cut_on_the_left(small_export):
    model = ExportedModel(small_export())
    text = tokens_of(100)
    whole, cut = model.score([Request(text[:-3], text[-3:]), Request(text[-33:-3], text[-3:])])

    assert len(text[-33:]) == MAX_LENGTH + 1
    np.testing.assert_array_equal(whole.log_probabilities, cut.log_probabilities)


@pytest.mark.parametrize("name", ["lookup_prefix_b4_p2", "vanilla_neox"])
def test_greedy_continuations_are_what_scoring_calls_the_best(small_export, name):
    model = ExportedModel(small_export(name, padded=False))
    prompts = [tokens_of(n, n) for n in (8, 4, 12, 8)]
    written = model.generate(prompts, max_new_tokens=6)

    assert all(0 < len(new) <= 6 for new in written)
    requests = [Request(prompt, new) for prompt, new in zip(prompts, written, strict=True)]
    assert [found.is_greedy for found in model.score(requests)] == [True] * len(prompts)


def test_what_cannot_be_evaluated_is_refused(tmp_path, small_export):
    with pytest.raises(ConversionError, match=r"config.json: cannot be read .*tools.export made"):
        ExportedModel(tmp_path)
    with pytest.raises(ConversionError, match="4 pads in front of texts.*Use 0 to 3"):
        ExportedModel(small_export(), left_padding=4)
    with pytest.raises(ConversionError, match="--tokenizer tokenizer.json"):
        read_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ConversionError, match="model_type is 'llama'"):
        ExportedModel(tmp_path)
    shutil.copyfile(small_export() / "config.json", tmp_path / "config.json")
    with pytest.raises(ConversionError, match="cannot be loaded"):
        ExportedModel(tmp_path)
