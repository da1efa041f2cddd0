# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.bench_inference`: how fast the engine generates on one GPU, in one run.

Models are built from configs/model with random weights on the device. Cases are
generate/MODEL/{prefill-heavy,decode-heavy,batch-1}/{bf16,fp8}: 2,048 tokens in and 128 out,
128 in and 2,048 out, and one sequence of 128 in and 512 out. The batch is searched: the time
of a step in the middle of generation and of a prompt are measured for the largest batches
that fit in memory, and the best runs as a whole, through the engine as a user would.
`roofline_tokens_per_s` is explained in inference_roofline.py. After each case the file is
written, so that a run that is cut short leaves what it has measured.
"""

import argparse
import gc
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bt_megatron.config.load import load_model as load_config
from bt_megatron.errors import BtError, ConfigError
from bt_megatron.inference.engine.load import random_model
from bt_megatron.inference.engine.models import Model
from bt_megatron.inference.engine.weights import Numbers
from tools.benchmark_file import Row, write_benchmark
from tools.inference_roofline import Ceilings, run_floor, step_floor, work_of
from tools.inference_speed import (
    Load,
    copy_bandwidth,
    make_engine,
    matrix_rate,
    prompt_seconds,
    row_counts,
    step_profile,
    step_seconds,
    whole_run,
)
from tools.inference_tuning import tune_cache, tune_narrow

CONFIGS = Path(__file__).parents[1] / "configs" / "model"
MODELS = ("block-1.2b", "block-420m", "block-170m", "vanilla-410m", "vanilla-160m")
LOADS = {
    "prefill-heavy": Load(2048, 128),
    "decode-heavy": Load(128, 2048),
    "batch-1": Load(128, 512),
}
FIRST_TOKEN = Load(2048, 8)
OUT = Path("docs/benchmarks/inference.json")


@dataclass(frozen=True, slots=True)
class Case:
    """One case."""

    model: str
    load: str
    precision: str
    groups: int | None = None
    """Query groups of a vanilla model, if not its own."""

    @property
    def name(self) -> str:
        """The case's name in the file."""
        model = self.model if self.groups is None else f"{self.model}-gqa{self.groups}"
        return f"generate/{model}/{self.load}/{self.precision}"


def all_cases(precisions: Sequence[str], groups: Sequence[int]) -> list[Case]:
    """Return the cases, models one after the other."""
    kinds: list[tuple[str, int | None]] = [(model, None) for model in MODELS]
    kinds += [(model, count) for model in MODELS if "vanilla" in model for count in groups]
    return [
        Case(model, load, precision, count)
        for model, count in kinds
        for precision in precisions
        for load in LOADS
    ]


def build(case: Case) -> Model:
    """Return the model of a case."""
    config = load_config(CONFIGS / f"{case.model}.yaml")
    if case.groups is not None and config.decoder is not None:
        config = replace(config, decoder=replace(config.decoder, num_query_groups=case.groups))
    return random_model(
        config,
        numbers=Numbers(torch.bfloat16, fp8=case.precision == "fp8"),
        device=torch.device("cuda"),
        max_tokens=max(load.total for load in LOADS.values()),
    )


def cache_type(case: Case) -> torch.dtype:
    """Return the type of keys and values of a case."""
    return torch.float8_e4m3fn if case.precision == "fp8" else torch.bfloat16


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured."""

    tries: int
    """Batches."""
    longest: float
    """Seconds of the longest run that is made as a whole; otherwise throughput is computed
    from the times of a prompt and of the first, the middle and the last step (Simpson)."""
    tune: bool
    """Choose tiles by measurement first."""
    profile: bool
    """Print the time of each kernel in a step."""


def measure(case: Case, model: Model, ceilings: Ceilings, effort: Effort) -> list[Row]:
    """Measure one case."""
    load = LOADS[case.load]
    kind = cache_type(case)
    work = work_of(model, kind.itemsize)
    rows = [1] if case.load == "batch-1" else row_counts(model, load, kind, effort.tries)
    engine = make_engine(model, load, rows[0], kind)
    torch.cuda.reset_peak_memory_stats()
    first = -(-load.prompt // model.position_tokens)
    middle = first + load.new // model.position_tokens // 2
    if effort.tune:
        tune_cache(engine, rows[0], middle)
        if case.load == "batch-1":
            tune_narrow(model)
    per_prompt = prompt_seconds(engine, load)
    steps = -(-load.new // model.step_tokens)
    tried = {}
    for count in rows:
        seconds = step_seconds(engine, count, middle)
        tried[count] = count * load.new / (count * per_prompt + steps * seconds)
        say(f"  {count} rows: step {seconds * 1e3:.2f} ms, about {tried[count]:,.0f} tokens/s")
    best = max(tried, key=lambda count: tried[count])
    ends = (first, middle, middle, middle, middle, first + load.new // model.position_tokens - 1)
    times = {positions: step_seconds(engine, best, positions) for positions in set(ends)}
    predicted = best * per_prompt + steps * sum(times[positions] for positions in ends) / 6
    value = best * load.new / predicted
    detail: dict[str, Any] = {"predicted_tokens_per_s": value, "estimated": True}
    if predicted <= effort.longest:
        run = whole_run(engine, load, best)
        value = run.tokens / run.seconds
        detail |= {"estimated": False, "seconds": run.seconds}
    if effort.profile:
        say(step_profile(engine, best, middle))
    floor = best * load.new / run_floor(work, ceilings, best, load.prompt, load.new)
    detail |= {
        "batch": best,
        "tried": {str(count): speed for count, speed in tried.items()},
        "prompt_ms": per_prompt * 1e3,
        "middle_step_ms": times[middle] * 1e3,
        "middle_step_floor_ms": step_floor(work, ceilings, best, middle) * 1e3,
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30,
        "bandwidth": ceilings.bandwidth,
        "rate": ceilings.rate,
    }
    kv = work.position_bytes * load.total / model.position_tokens
    found = [
        Row(case=case.name, metric="tokens_per_s", value=value, unit="tokens/s", detail=detail),
        Row(case=case.name, metric="roofline_tokens_per_s", value=floor, unit="tokens/s"),
        Row(case=case.name, metric="kv_bytes_per_sequence", value=kv, unit="bytes"),
    ]
    if case.load == "batch-1":
        found.append(Row(case=case.name, metric="ms_per_token", value=1e3 / value, unit="ms"))
        del engine
        found.append(first_token(case, model, kind))
    return found


def first_token(case: Case, model: Model, kind: torch.dtype) -> Row:
    """Measure the time from a request to its first tokens, for a prompt of 2,048."""
    engine = make_engine(model, FIRST_TOKEN, 1, kind)
    runs = [whole_run(engine, FIRST_TOKEN, 1) for _ in range(4)]
    value = sorted(run.first_token for run in runs[1:])[1] * 1e3
    return Row(case=case.name, metric="first_token_ms", value=value, unit="ms")


def chosen_cases(arguments: argparse.Namespace) -> list[Case]:
    """Return the cases whose name has one of the words of --only in it.

    Raises:
        ConfigError: none has.
    """
    cases = all_cases(arguments.precision.split(","), arguments.groups or [])
    words = arguments.only.split(",") if arguments.only else [""]
    found = [case for case in cases if any(word in case.name for word in words)]
    if not found:
        names = ", ".join(case.name for case in cases)
        raise ConfigError(f"--only {arguments.only}: no case. There are: {names}.")
    return found


def run(cases: Sequence[Case], arguments: argparse.Namespace) -> Iterator[list[Row]]:
    """Measure cases, yielding the rows of each."""
    bandwidth, bf16 = copy_bandwidth(), matrix_rate(fp8=False)
    needs_fp8 = any(case.precision == "fp8" for case in cases)
    rates = {"bf16": bf16, "fp8": matrix_rate(fp8=True) if needs_fp8 else bf16}
    say(f"copy {bandwidth / 1e12:.2f} TB/s, products {bf16 / 1e12:.0f} TFLOP/s")
    tries = min(arguments.tries, 2) if arguments.quick else arguments.tries
    effort = Effort(
        tries,
        longest=0 if arguments.quick else arguments.longest,
        tune=arguments.tune,
        profile=arguments.profile,
    )
    model, held = None, None
    for case in cases:
        say(case.name)
        kind = (case.model, case.precision, case.groups)
        if kind != held:
            model = None
            forget()
            model, held = build(case), kind
        assert model is not None
        ceilings = Ceilings(bandwidth, rates[case.precision], bf16)
        try:
            found = measure(case, model, ceilings, effort)
        except torch.OutOfMemoryError as error:
            say(f"  n/a: {str(error).splitlines()[0]}")
            continue
        finally:
            model.cache = None
            forget()
        for row in found:
            say(f"  {row.metric:24} {row.value:16,.3f} {row.unit}")
        yield found


def forget() -> None:
    """Free what is not used any more."""
    gc.collect()
    torch.cuda.empty_cache()


def say(text: str) -> None:
    """Print at once."""
    print(text, flush=True)  # noqa: T201


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench_inference", description="Speed of generation on one GPU."
    )
    parser.add_argument("--only", help="words in case names, with commas, e.g. block-1.2b")
    parser.add_argument("--precision", default="bf16", help="bf16, fp8 or bf16,fp8")
    parser.add_argument("--groups", type=int, nargs="*", help="query groups of vanilla models too")
    parser.add_argument("--tries", type=int, default=5, help="batches to try (default 5)")
    parser.add_argument("--quick", action="store_true", help="compute from parts of a run")
    parser.add_argument(
        "--longest", type=float, default=120.0, metavar="S", help="seconds of a run (default 120)"
    )
    parser.add_argument("--tune", action="store_true", help="choose tiles by measurement first")
    parser.add_argument("--profile", action="store_true", help="print the time of each kernel")
    parser.add_argument("--json", type=Path, default=OUT, metavar="FILE", help=f"default {OUT}")
    arguments = parser.parse_args(argv)
    try:
        cases = chosen_cases(arguments)
        if not torch.cuda.is_available():
            raise BtError("bench_inference: no CUDA device. Start it on a machine with a GPU.")
        rows: list[Row] = []
        for found in run(cases, arguments):
            rows += found
            write_benchmark(arguments.json, rows)
    except BtError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
