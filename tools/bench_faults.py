# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.bench_faults`: a run on a real Slurm with faults, against one without.

Starts a Slurm of two nodes on this machine (tools/start_slurm.sh; Debian, as root), trains a small
model on them undisturbed, and once more with faults at random moments (tools/fault_cases.py).
Both runs also meet the same batches whose loss is not finite or a spike. At the end every loss and
every tensor of the last checkpoint are compared, and a table says how long each recovery took: from
the fault to the first new step, with the time in which Slurm did not start the job apart.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import zstandard

from bt_megatron.errors import BtError, LaunchError
from bt_megatron.observe.jsonl import read_records
from bt_megatron.observe.run_folder import RunFolder
from slurm.cluster import ClusterConfig
from slurm.submit import TrainingJob, live_job, submit
from slurm.watch import last_step
from tools.benchmark_file import Row, write_benchmark
from tools.fault_cases import START_SLURM, Fault, Scene, draw, start_nodes

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "data_prep" / "sample" / "state-of-the-union-and-moby-dick.jsonl.zst"
OUT = ROOT / "docs" / "benchmarks" / "faults.json"
STEPS_PER_FAULT = 4
RECOVERS_WITHIN_S = 300.0
DISK = "96M"
SETTINGS = (
    *("model.vocab_size=512", "model.embedder.hidden_size=16", "data.seq_length=64"),
    *("model.block_decoder.num_layers=2", "model.block_decoder.hidden_size=64"),
    *("model.token_decoder.num_layers=2", "model.token_decoder.hidden_size=64"),
    *("model.block_decoder.num_attention_heads=4", "model.token_decoder.num_attention_heads=4"),
    *("batch.micro_batch_size=1", "optimizer.warmup_steps=20", "data.validation_fraction=0.2"),
    *("log.mlflow=null", "log.interval_steps=1", "checkpoint.interval_steps=8"),
    *("evaluation.interval_steps=100", "evaluation.max_sequences=8"),
    *("faults.dead_rank_seconds=6", "faults.hung_rank_seconds=6"),
)


@dataclass(frozen=True, slots=True)
class Recovery:
    """One fault and what came of it."""

    fault: Fault
    step: int
    recovery_s: float
    """From the fault to the first new step, without `slurm_s`."""
    slurm_s: float
    """Time in which the job was with Slurm: requeued and not yet started."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        chance = random.Random(arguments.seed)
        rows = measure(arguments.folder, draw(arguments.faults, chance), chance)
        write_benchmark(arguments.out, rows)
        _say(f"written: {arguments.out}")
    except BtError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    is_same = all(row.value == 0 for row in rows if row.metric == "loss_difference")
    return 0 if is_same else 1


def measure(folder: Path, drawn: Sequence[Fault], chance: random.Random) -> list[Row]:
    """Run everything and return the rows of the table.

    Args:
        folder: to work in.
        drawn: the faults, in order.
        chance: decides when they come.

    Raises:
        LaunchError: there is no Slurm here, or a run has not recovered.
    """
    folder = folder.resolve()
    steps = 40 + STEPS_PER_FAULT * len(drawn)
    runs = folder / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    make_data(folder)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", runs], check=True)
    start_slurm(folder)
    try:
        bad = chance.sample(range(40, steps - 5), 4)
        plan = {"nan": bad[:2], "spike": bad[2:]}
        (folder / "plan.json").write_text(json.dumps(plan))
        expected = training_job(folder, "undisturbed", steps=steps)
        _say(f"undisturbed: {steps} steps")
        began = time.time()
        (submitted,) = submit([expected])
        wait_for_end(expected)
        _say(f"undisturbed: {time.time() - began:.0f} s; now the faults")
        disturbed = training_job(folder, "disturbed", steps=steps)
        submit([disturbed])
        scene = Scene(folder, disturbed.records, chance)
        recoveries = cause_all(scene, drawn, steps=steps)
        wait_for_end(disturbed)
        difference = compare(expected.records.folder, disturbed.records.folder)
        rows = [
            *table(recoveries, difference),
            *bad_batches(disturbed.records.folder, plan, difference),
        ]
        print_table(rows)
    finally:
        subprocess.run([START_SLURM, "stop", "-d", folder / "slurm"], check=False)
        kept = folder / "records"  # what the launcher wrote; the disk of the runs goes
        shutil.rmtree(kept, ignore_errors=True)
        for run in runs.iterdir():
            shutil.copytree(run / "slurm", kept / run.name)
        subprocess.run(["umount", "--lazy", runs], check=False)
    return rows


def make_data(folder: Path) -> None:
    """Tokenize the beginnings of some documents of the sample corpus."""
    data = folder / "tokens"
    if (data / "manifest.json").exists():
        return
    from data_prep.__main__ import main as data_prep

    lines = zstandard.ZstdDecompressor().stream_reader(SAMPLE.open("rb")).read().splitlines()
    text, tokenizer = folder / "text.jsonl", folder / "tokenizer.json"
    with text.open("wb") as file:
        for line in lines[:24]:
            document = orjson.loads(line)
            document["text"] = document["text"][:3000]
            file.write(orjson.dumps(document) + b"\n")
    for command in (
        ["train-tokenizer", str(text), "--vocab-size", "512", "--out", str(tokenizer)],
        ["tokenize", str(text), "--tokenizer", str(tokenizer), "--out", str(data)],
    ):
        if data_prep(command):
            raise LaunchError(f"python -m data_prep {' '.join(command)} failed; see above.")


def start_slurm(folder: Path) -> None:
    """Start a Slurm of two nodes with own network addresses.

    Raises:
        LaunchError: it does not start.
    """
    if os.getuid() != 0:
        raise LaunchError("starting a Slurm needs root. Run this as root, e.g. in a container.")
    slurm = folder / "slurm"
    subprocess.run([START_SLURM, "stop", "-d", slurm], check=False, capture_output=True)
    shutil.rmtree(slurm, ignore_errors=True)
    start_nodes(slurm)
    os.environ["SLURM_CONF"] = str(slurm / "etc" / "slurm.conf")


def training_job(folder: Path, name: str, *, steps: int) -> TrainingJob:
    """Return a run of two processes on two nodes, each started as tools/faulty_train."""
    python = folder / "python"
    python.write_text(
        "#!/bin/bash\n# Stands for the python of a job: -m bt_megatron train ARGUMENTS\n"
        f'cd {ROOT} && exec {sys.executable} -m tools.faulty_train {folder} "${{@:4}}"\n'
    )
    python.chmod(0o755)
    cluster = ClusterConfig(
        name="bench",
        gpus_per_node=1,
        cpus_per_gpu=1,
        memory_per_gpu_gb=4,
        time_limit_minutes=120,
        fruitless_attempts=20,
        node_failures=0,
        python=str(python),
        setup="export GLOO_SOCKET_IFNAME=eth0",
    )
    settings = [
        *SETTINGS,
        *(f"name={name}", f"runs_dir={folder}/runs", f"data.path={folder}/tokens"),
        f"train.steps={steps}",
    ]
    config = [ROOT / "configs" / "run" / "demo.yaml"]
    return TrainingJob.load(config, settings, cluster=cluster, processes=2)


def cause_all(scene: Scene, drawn: Sequence[Fault], *, steps: int) -> list[Recovery]:
    """Put faults into a run, one after the other, and wait for each recovery."""
    moments = sorted(scene.chance.sample(range(3, steps - 10), len(drawn)))
    recoveries = []
    for number, (step, fault) in enumerate(zip(moments, drawn, strict=True), start=1):
        wait_for_step(scene, step)
        time.sleep(scene.chance.uniform(0, 0.5))
        began = time.time()
        fault.cause(scene)
        recoveries.append(_recovery(scene, fault, step, began))
        _say(
            f"{number:>3}/{len(drawn)} {fault.kind:<42} at step {step:>4}: "
            f"{recoveries[-1].recovery_s:5.1f} s, and {recoveries[-1].slurm_s:4.1f} s of Slurm"
        )
    return recoveries


def wait_for_step(scene: Scene, step: int) -> None:
    """Wait until a run has taken a step.

    Raises:
        LaunchError: it does not, or has ended.
    """
    deadline = time.time() + RECOVERS_WITHIN_S
    while last_step(scene.records.folder.metrics).get("step", 0) < step:
        if time.time() > deadline:
            raise LaunchError(f"step {step} was not taken in time; see {scene.records.path}.")
        time.sleep(0.05)


def wait_for_end(job: TrainingJob) -> None:
    """Wait until no job of a run is left.

    Raises:
        LaunchError: the run is not complete.
    """
    while live_job(job.records) is not None:
        time.sleep(1)
    last = last_step(job.records.folder.metrics)
    if last.get("step") != job.plan.steps:
        raise LaunchError(
            f"the run ended at step {last.get('step')} of {job.plan.steps}; see {job.records.path}."
        )


def compare(one: RunFolder, other: RunFolder) -> dict[str, Any]:
    """Return the largest difference of two runs in any loss and in any tensor at their ends."""
    import torch
    from torch.distributed.checkpoint import FileSystemReader, load
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    def losses(folder: RunFolder) -> dict[tuple[str, int], float | None]:
        names = {"step": "train/loss", "evaluation": "validation/loss"}
        records = read_records(folder.metrics)
        return {(r["kind"], r["step"]): r[names[r["kind"]]] for r in records}

    def tensors(folder: RunFolder) -> dict[str, Any]:
        reader = FileSystemReader(max(folder.checkpoints.glob("step_*")))
        entries = reader.read_metadata().state_dict_metadata.items()
        empty = {
            key: torch.empty(entry.size, dtype=entry.properties.dtype)
            for key, entry in entries
            if isinstance(entry, TensorStorageMetadata)
        }
        load(empty, storage_reader=reader, no_dist=True)
        return empty

    expected, got = losses(one), losses(other)
    if expected.keys() != got.keys():
        raise LaunchError(f"other steps were logged: {sorted(expected.keys() ^ got.keys())[:5]}")
    pairs = [(loss, got[key]) for key, loss in expected.items()]
    loss = max(abs((a or 0.0) - (b or 0.0)) for a, b in pairs)
    left, right = tensors(one), tensors(other)
    unequal = [key for key, tensor in left.items() if not torch.equal(tensor, right[key])]
    if unequal:
        raise LaunchError(f"{len(unequal)} of {len(left)} tensors differ at the end: {unequal[:3]}")
    return {"loss": loss, "losses_compared": len(pairs), "tensors_equal": len(left)}


def table(recoveries: Sequence[Recovery], difference: dict[str, Any]) -> list[Row]:
    """Return the rows of faults that were put in."""
    by_kind = defaultdict(list)
    for recovery in recoveries:
        by_kind[recovery.fault.kind].append(recovery)
    rows = []
    for kind, of_kind in by_kind.items():
        seconds = [one.recovery_s for one in of_kind]
        detail = {
            "median_s": round(statistics.median(seconds), 1),
            "slurm_s": round(statistics.median(one.slurm_s for one in of_kind), 1),
            "restarts": of_kind[0].fault.restarts,
            **difference,
        }
        count = sum(one.fault.faults for one in of_kind)
        case = f"fault/{kind}"
        rows += [
            Row(case=case, metric="count", value=count, unit="faults"),
            Row(case=case, metric="loss_difference", value=difference["loss"], unit="nats"),
            Row(
                case=case,
                metric="recovery_s",
                value=round(max(seconds), 1),
                unit="s",
                detail=detail,
            ),
        ]
    return rows


def bad_batches(
    folder: RunFolder, plan: dict[str, list[int]], difference: dict[str, Any]
) -> list[Row]:
    """Return the rows of batches that both runs leave out, having checked that they did."""
    skipped = {
        event["step"] for event in read_records(folder.events) if event["event"] == "skipped"
    }
    rows = []
    for kind, name in (("nan", "loss not finite"), ("spike", "loss spike")):
        missing = set(plan[kind]) - skipped
        if missing:
            raise LaunchError(f"steps {sorted(missing)} ({name}) were not left out.")
        case = f"fault/{name}"
        detail = {"restarts": False, "steps": plan[kind]}
        rows += [
            Row(case=case, metric="count", value=len(plan[kind]), unit="faults"),
            Row(case=case, metric="loss_difference", value=difference["loss"], unit="nats"),
            Row(case=case, metric="recovery_s", value=0.0, unit="s", detail=detail),
        ]
    return rows


def print_table(rows: Sequence[Row]) -> None:
    """Print one line a kind."""
    by_case: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        by_case[row.case][row.metric] = row
    _say(f"{'fault':<44}{'count':>6}{'difference':>12}{'worst s':>9}{'median s':>10}{'Slurm s':>9}")
    for case, of_case in by_case.items():
        worst = of_case["recovery_s"]
        _say(
            f"{case.removeprefix('fault/'):<44}{of_case['count'].value:>6.0f}"
            f"{of_case['loss_difference'].value:>12g}{worst.value:>9.1f}"
            f"{worst.detail.get('median_s', 0.0):>10.1f}{worst.detail.get('slurm_s', 0.0):>9.1f}"
        )


def _recovery(scene: Scene, fault: Fault, step: int, began: float) -> Recovery:
    """Wait for the first step after a fault.

    Raises:
        LaunchError: there is none in time.
    """
    deadline = time.time() + RECOVERS_WITHIN_S
    folder = scene.records.folder
    awaited = ("resumed", "started") if fault.restarts else ("recomputed",)
    while time.time() < deadline:
        events = [e for e in read_records(folder.events) if e["time"] > began]
        turns = [event["time"] for event in events if event["event"] in awaited]
        first = _first_step_after(folder.metrics, max(turns)) if turns else None
        if first is not None:
            slurm_s = _with_slurm(scene, began, first) if fault.restarts else 0.0
            return Recovery(fault, step, first - began - slurm_s, slurm_s)
        time.sleep(0.05)
    raise LaunchError(
        f"no new step within {RECOVERS_WITHIN_S:.0f} s after '{fault.kind}' at step {step}; see "
        f"{scene.records.path}."
    )


def _first_step_after(metrics: Path, moment: float) -> float | None:
    times = [r["time"] for r in read_records(metrics) if r["kind"] == "step" and r["time"] > moment]
    return min(times, default=None)


def _with_slurm(scene: Scene, began: float, ended: float) -> float:
    """Return the seconds between attempts that belong to different starts of the job."""
    attempts = [a for a in scene.records.attempts() if a.get("ended", ended) > began]
    seconds = 0.0
    for before, after in zip(attempts, attempts[1:], strict=False):
        if before["restart"] != after["restart"] and after["started"] <= ended:
            left = began if before["code"] is None else before["ended"]  # None: Slurm ended it
            seconds += after["started"] - max(began, left)
    return seconds


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.bench_faults", description=__doc__)
    parser.add_argument("--faults", type=int, default=50, metavar="N", help="how many (50)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments and their order (1)")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench-faults"))
    parser.add_argument("--out", type=Path, default=OUT, help="benchmark file to write")
    return parser


if __name__ == "__main__":
    sys.exit(main())
