# SPDX-License-Identifier: Apache-2.0
"""Tokens are drawn with the right probabilities, from numbers that only seed and place decide."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TopKLogitsWarper, TopPLogitsWarper

from bt_megatron.inference.engine.rows import Real, Rows, Whole, make_rows
from bt_megatron.inference.engine.sampling import draw, keep_likely, philox, uniform

SEEDS = 20_000
CHI_SQUARE_1E6 = {3: 30.7, 5: 35.9, 7: 40.5}
"""Exceeded with probability 1e-6, by degrees of freedom (the seeds are fixed)."""


def test_numbers_are_those_of_philox():
    """Known answer of Random123's test vectors: philox4x32 10, counter and key zero."""
    zero = torch.zeros(1, dtype=torch.int64)
    assert philox(zero, zero, zero).item() == 0x6627E8D5


def rows_of(count: int, vocab: int, **real: float) -> Rows:
    rows = make_rows(count, tokens=1, pages=1, vocab_size=vocab, device=torch.device("cpu"))
    rows.real[:, Real.TEMPERATURE] = real.get("temperature", 1.0)
    rows.real[:, Real.TOP_P] = real.get("top_p", 1.0)
    rows.real[:, Real.PENALTY] = real.get("penalty", 1.0)
    rows.whole[:, Whole.TOP_K] = int(real.get("top_k", 0))
    rows.whole[:, Whole.SEED_LOW] = torch.arange(count)
    return rows


def test_uniform_numbers_fill_the_interval():
    numbers = uniform(rows_of(SEEDS, 2).whole).sort().values
    assert numbers[0] > 0
    assert numbers[-1] <= 1
    grid = (torch.arange(SEEDS) + 0.5) / SEEDS
    assert (numbers - grid).abs().max() < 0.012  # Kolmogorov-Smirnov, p about 0.006


LOGITS = torch.tensor([2.0, -1.0, 0.5, 1.5, 0.0, -3.0, 1.0, 0.25])
SETTINGS = {
    "plain": ({}, range(8)),
    "hot": ({"temperature": 2.0}, range(8)),
    "top_k": ({"top_k": 4}, (0, 2, 3, 6)),
    "top_p": ({"top_p": 0.8}, (0, 2, 3, 6)),
    "both": ({"top_k": 6, "top_p": 0.9, "temperature": 0.8}, (0, 2, 3, 6)),
}


@pytest.mark.parametrize(("settings", "kept"), SETTINGS.values(), ids=SETTINGS.keys())
def test_frequencies(settings, kept):
    token, logprob = draw(LOGITS.expand(SEEDS, -1), rows_of(SEEDS, 8, **settings))
    counts = torch.bincount(token, minlength=8).double()
    kept = list(kept)
    expected = torch.zeros(8).double()
    cooled = (LOGITS[kept] / settings.get("temperature", 1.0)).double()
    expected[kept] = cooled.softmax(0) * SEEDS
    assert counts.sum() == counts[kept].sum()
    chi_square = ((counts[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    assert chi_square < CHI_SQUARE_1E6[len(kept) - 1]
    torch.testing.assert_close(logprob, LOGITS.log_softmax(0)[token])


@given(
    seed=st.integers(0, 2**31),
    top_k=st.integers(0, 40),
    top_p=st.floats(0.01, 1.0),
    spread=st.floats(0.1, 10.0),
)
def test_filters_keep_what_those_of_transformers_keep(seed, top_k, top_p, spread):
    logits = torch.randn(3, 32, generator=torch.Generator().manual_seed(seed)) * spread
    expected = logits
    if top_k:
        expected = TopKLogitsWarper(min(top_k, 32))(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    count = torch.full((3,), top_k)
    got = keep_likely(logits, count, torch.full((3,), top_p))
    mass = expected.softmax(-1).sort(-1).values.cumsum(-1)
    if (mass - (1 - top_p)).abs().min() > 1e-5:  # otherwise rounding decides
        assert torch.equal(got, expected)


def test_equal_tokens():
    """At temperature 0 the lowest id wins; a filter keeps all that are as good as the last."""
    logits = torch.tensor([[0.0, 3.0, 3.0, 3.0, 1.0]])
    token, _ = draw(logits, rows_of(1, 5, temperature=0.0))
    assert token.item() == 1
    kept = keep_likely(logits, torch.tensor([2]), torch.tensor([1.0]))
    assert kept.isfinite().tolist() == [[False, True, True, True, False]]
