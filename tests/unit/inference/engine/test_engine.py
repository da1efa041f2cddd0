# SPDX-License-Identifier: Apache-2.0
"""Requests come and go; what one of them gets depends on nobody else."""

import random
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bt_megatron.errors import ConfigError
from bt_megatron.inference.engine.cache import page_bytes
from bt_megatron.inference.engine.engine import Engine, Settings
from bt_megatron.inference.engine.load import random_model
from bt_megatron.inference.engine.requests import Options, QueueFullError, RequestError
from bt_megatron.inference.engine.rows import Whole
from bt_megatron.inference.engine.weights import Numbers
from tests.small_models import VOCAB, small_model

CPU = torch.device("cpu")
MODEL = random_model(small_model(), numbers=Numbers(torch.float32), device=CPU, max_tokens=160)
PAGE = page_bytes(MODEL.cached.shape, torch.float32)


def engine(**changes) -> Engine:
    return Engine(MODEL, Settings(**{"max_rows": 4, "max_tokens": 160, **changes}), CPU)


def prompt(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed * 1000 + length).choices(range(VOCAB), k=length)


def alone(tokens: list[int], options: Options) -> list[int]:
    (request,) = engine(max_rows=1).generate([tokens], options)
    return request.tokens


ASKED = st.lists(
    st.tuples(
        st.integers(1, 40),
        st.builds(
            Options,
            max_new_tokens=st.integers(1, 30),
            temperature=st.sampled_from([0.0, 0.8, 1.3]),
            top_k=st.sampled_from([0, 5]),
            top_p=st.sampled_from([1.0, 0.7]),
            repetition_penalty=st.sampled_from([1.0, 1.4]),
            seed=st.integers(0, 2**63 - 1),
            end_id=st.sampled_from([None, 3]),
        ),
        st.integers(0, 6),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=12)
@given(asked=ASKED, rows=st.integers(1, 5), pages=st.integers(2, 6))
def test_tokens_do_not_depend_on_who_else_is_there(asked, rows, pages):
    """Requests are submitted over time, to few rows and little memory, in one arrangement."""
    shared = engine(max_rows=rows, cache_bytes=(pages + 1) * PAGE)
    waiting = sorted(enumerate(asked), key=lambda pair: pair[1][2])
    requests = {}
    step = 0
    while waiting or not shared.is_idle:
        while waiting and waiting[0][1][2] <= step:
            index, (length, options, _) = waiting.pop(0)
            requests[index] = shared.submit(prompt(length, index), options)
        shared.step()
        step += 1
    assert shared.pages.free == shared.pages.total
    assert not shared.rows.whole[:, Whole.ALIVE].any()
    for index, (length, options, _) in enumerate(asked):
        assert requests[index].tokens == alone(prompt(length, index), options)


def test_the_batch_stays_full():
    shared = engine(max_rows=3)
    requests = [shared.submit(prompt(5, i), Options(max_new_tokens=4 + 4 * i)) for i in range(9)]
    full = 0
    while not shared.is_idle:
        shared.step()
        full += len(shared.running) == 3
    assert sum(request.steps for request in requests) == sum(range(1, 10))
    assert full >= 12  # of at least 15 steps; the last ones have nobody to take


def test_prompts_may_be_spread_over_steps():
    shared = engine(max_rows=4, positions_per_step=10)
    for index in range(4):
        shared.submit(prompt(32, index), Options(max_new_tokens=40))
    counts = []
    for _ in range(4):
        shared.step()
        counts.append(len(shared.running))
    assert counts == [1, 2, 3, 4]


def test_cancelled_requests_give_back_what_they_held():
    shared = engine(max_rows=2)
    running, other, waiting = (
        shared.submit(prompt(8, index), Options(max_new_tokens=60)) for index in range(3)
    )
    for _ in range(3):
        shared.step()
    written = len(running.tokens)
    assert 0 < written < 60
    running.cancel()
    waiting.cancel()
    shared.run()
    assert (running.finish_reason, waiting.finish_reason) == ("cancelled", "cancelled")
    assert len(running.tokens) == written
    assert waiting.tokens == []
    assert other.tokens == alone(prompt(8, 1), Options(max_new_tokens=60))
    assert shared.pages.free == shared.pages.total


def test_time_runs_out_for_the_waiting_too():
    shared = engine(max_rows=1)
    first = shared.submit(prompt(4), Options(max_new_tokens=120))
    late = shared.submit(prompt(4), Options(timeout=0.01))
    shared.step()
    time.sleep(0.02)
    shared.step()
    assert late.finish_reason == "timeout"
    first.cancel()
    shared.run()


def test_listeners_hear_of_each_step_and_may_stop():
    heard = []

    def listen(request):
        heard.append(len(request.tokens))
        return len(request.tokens) >= 12

    shared = engine()
    request = shared.submit(prompt(7), Options(max_new_tokens=50), listen)
    shared.run()
    assert heard == [4, 8, 12]
    assert request.finish_reason == "stop"
    assert request.first_token is not None


REFUSED = {
    "empty": ([], {}, "no tokens"),
    "unknown token": ([1, VOCAB], {}, f"0 to {VOCAB - 1}"),
    "negative token": ([-1], {}, "from -1"),
    "too long": ([1] * 100, {"max_new_tokens": 61}, "161, allowed are 160"),
    "no new tokens": ([1], {"max_new_tokens": 0}, "max_new_tokens is 0"),
    "temperature": ([1], {"temperature": float("nan")}, "temperature is nan"),
    "top_p": ([1], {"top_p": 0.0}, "top_p is 0.0"),
    "top_k": ([1], {"top_k": -1}, "top_k is -1"),
    "penalty": ([1], {"repetition_penalty": 0.0}, "repetition_penalty"),
    "seed": ([1], {"seed": 2**63}, "seed"),
    "top_logprobs": ([1], {"top_logprobs": 6}, "0 to 5"),
    "timeout": ([1], {"timeout": 0.0}, "seconds"),
}


@pytest.mark.parametrize(("tokens", "options", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_requests_that_cannot_be_served(tokens, options, words):
    with pytest.raises(RequestError, match=words):
        engine().submit(np.array(tokens, dtype=np.int64), Options(**options))


def test_a_request_larger_than_the_cache_is_refused():
    with pytest.raises(RequestError, match="needs 2 pages of the cache, there are 1"):
        engine(cache_bytes=2 * PAGE).submit(prompt(130), Options(max_new_tokens=8))


def test_too_many_waiting():
    shared = engine(max_waiting=2)
    for _ in range(2):
        shared.submit(prompt(3), Options())
    with pytest.raises(QueueFullError, match="2 requests wait"):
        shared.submit(prompt(3), Options())


def test_no_memory_for_a_single_page():
    with pytest.raises(ConfigError, match="Allow fewer rows"):
        engine(cache_bytes=PAGE)
