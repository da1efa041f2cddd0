# SPDX-License-Identifier: Apache-2.0
"""The console: fixed order, n/a, one warning, no colour in files."""

import io
from dataclasses import replace

import pytest

from bt_megatron.observe.console import Console, format_duration, format_evaluation, format_step
from bt_megatron.observe.record import EvaluationRecord, StepRecord

STEP = StepRecord(
    step=1200,
    total_steps=50_000,
    tokens=629_145_600,
    loss=2.8134,
    grad_norm=0.41,
    lr=2.9e-4,
    skipped_steps=0,
    tokens_per_s=329_696.0,
    tokens_per_s_per_device=41_212.0,
    tokens_per_s_average=320_000.0,
    mfu=0.384,
    step_s=1.59,
    data_wait_fraction=0.008,
    eta_s=14 * 3600 + 2 * 60,
    memory_gib=61.2,
    memory_total_gib=79.1,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class GoneTerminal(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_the_line_of_a_step():
    assert format_step(STEP) == (
        "step  1200/50000  2.4%  loss 2.8134  gnorm 0.41  lr 2.9e-04  tok/s/gpu 41,212  "
        "mfu 38.4%  mem 61.2/79.1 GiB  data 0.8%  eta 14h02m"
    )


def test_unknown_figures_are_said_to_be_unknown():
    record = replace(
        STEP, mfu=None, memory_gib=None, memory_total_gib=None, grad_norm=None, eta_s=None
    )
    assert format_step(record, device="cpu") == (
        "step  1200/50000  2.4%  loss 2.8134  gnorm n/a  lr 2.9e-04  tok/s/cpu 41,212  "
        "mfu n/a  mem n/a  data 0.8%  eta n/a"
    )


def test_a_loss_that_is_not_a_number_is_shown_as_such():
    assert "  loss nan  " in format_step(replace(STEP, loss=float("nan")))


def test_skipped_steps_are_shown_when_there_are_any():
    assert format_step(replace(STEP, skipped_steps=3)).endswith("eta 14h02m  skipped 3")


def test_first_and_last_line_have_their_columns_at_the_same_place():
    first, last = format_step(replace(STEP, step=1)), format_step(replace(STEP, step=50_000))
    assert first.index("/50000") == last.index("/50000")


def test_the_reason_of_an_unknown_figure_is_given_once():
    stream = io.StringIO()
    console = Console(stream=stream)
    for step in (1, 2, 3):
        console.step(replace(STEP, step=step, mfu=None))
    lines = stream.getvalue().splitlines()
    assert [line.startswith("WARNING mfu is n/a") for line in lines] == [True, False, False, False]


def test_the_line_of_an_evaluation():
    record = EvaluationRecord(step=1200, loss=2.0, bits_per_byte=None, targets=1_046_528)
    assert format_evaluation(record, total_steps=50_000) == (
        "step  1200/50000  validation loss 2.0000  perplexity 7.39  bits/byte n/a  "
        "targets 1,046,528"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "n/a"),
        (0, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (125, "2m05s"),
        (50_520, "14h02m"),
        (273_600, "3d04h"),
    ],
    ids=str,
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("stream", "coloured"), [(io.StringIO(), False), (Terminal(), True)], ids=["file", "terminal"]
)
def test_colour_only_on_a_terminal(stream, coloured):
    console = Console(stream=stream)
    console.warn("disk is nearly full")
    console.banner("bt-megatron", [("run", "a"), ("layout", "dp 2")])
    assert ("\x1b[" in stream.getvalue()) is coloured
    assert "WARNING disk is nearly full" in stream.getvalue()


def test_tables_are_aligned():
    stream = io.StringIO()
    Console(stream=stream).summary("done", [("loss", "2.1"), ("tokens", "12")])
    assert stream.getvalue() == "done\n  loss    2.1\n  tokens  12\n"


def test_a_banner_stays_short():
    with pytest.raises(AssertionError):
        Console(stream=io.StringIO()).banner("title", [("row", "")] * 15)


def test_other_processes_are_silent():
    stream = io.StringIO()
    console = Console(stream=stream, enabled=False)
    console.step(replace(STEP, mfu=None))
    console.error("gone")
    assert stream.getvalue() == ""


def test_a_terminal_that_is_gone_does_not_end_the_run():
    console = Console(stream=GoneTerminal())
    console.note("one")
    console.step(STEP)
