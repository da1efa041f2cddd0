# SPDX-License-Identifier: Apache-2.0
"""lm-eval's own `hf` model and ours answer the same, on the same exported folder."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install '.[evaluate]')")

from bt_megatron.evaluation.exported_model import ExportedModel, read_tokenizer
from bt_megatron.evaluation.lm_eval_model import EvaluatedModel

TEXT = "the quick brown fox jumps over the lazy dog and the other quick foxes. "
PAIRS = [
    ("the quick brown", " fox"),
    ("", "the lazy dog"),
    ("a", " b"),
    ("the ", "other"),  # lm-eval moves the space to the continuation
    (TEXT * 3, " the end"),  # longer than the model's context
    ("jumps over", " the lazy dog and the other"),
]
TEXTS = ["a", "the", TEXT, TEXT * 5]
CASES = {
    "block, padded": ("lookup_prefix_b4_p2", True),
    "block, not padded": ("lookup_prefix_b4_p2", False),
    "T5 decoder": ("roberta_cls_cross_attention_b4", True),
    "vanilla": ("vanilla_neox", False),
}


def requests(arguments):
    return [SimpleNamespace(args=one) for one in arguments]


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES.keys())
def both(request, small_export):
    from lm_eval.models.huggingface import HFLM

    name, padded = request.param
    folder = small_export(name, padded=padded)
    theirs = HFLM(str(folder), trust_remote_code=True, dtype="float32", device="cpu", batch_size=3)
    steps = []
    ours = EvaluatedModel(
        ExportedModel(folder), read_tokenizer(folder), on_progress=lambda *at: steps.append(at)
    )
    return theirs, ours, steps


def test_likelihoods_of_continuations(both):
    theirs, ours, steps = both
    expected = theirs.loglikelihood(requests(PAIRS), disable_tqdm=True)
    found = ours.loglikelihood(requests(PAIRS))

    np.testing.assert_allclose([f[0] for f in found], [e[0] for e in expected], atol=1e-4, rtol=0)
    assert [f[1] for f in found] == [e[1] for e in expected]
    assert steps[-1] == (len(PAIRS), len(PAIRS))


def test_likelihoods_of_whole_texts(both):
    theirs, ours, _ = both
    texts = [(text,) for text in TEXTS]
    assert len(ours.tok_encode(TEXTS[-1])) > 2 * theirs.max_length  # several windows
    expected = theirs.loglikelihood_rolling(requests(texts), disable_tqdm=True)
    found = ours.loglikelihood_rolling(requests(texts))

    np.testing.assert_allclose(found, expected, atol=1e-3, rtol=0)


def test_continuations(both):
    theirs, ours, _ = both
    options = {"max_gen_toks": 12, "until": ["e"]}
    asked = [("the quick brown fox", options), ("over the lazy", options), (TEXT, options)]
    expected = theirs.generate_until(requests(asked), disable_tqdm=True)

    assert ours.generate_until(requests(asked)) == expected


def test_a_continuation_longer_than_the_model_reads_is_scored_in_windows(both):
    theirs, ours, _ = both
    pair = ("the lazy dog", " " + TEXT * 4)
    context, continuation = ours._encode_pair(*pair)
    limit = theirs.max_length
    assert limit < len(continuation) < 2 * limit
    ((found, greedy),) = ours.loglikelihood(requests([pair]))

    before_rest = continuation[len(continuation) - limit - 1 : limit]  # as much as fits
    windows = [
        (None, context[-1:], continuation[:limit]),
        (None, before_rest, continuation[limit:]),
    ]
    expected = sum(log for log, _ in theirs._loglikelihood_tokens(windows, disable_tqdm=True))
    assert found == pytest.approx(expected, abs=1e-3)
    assert not greedy
