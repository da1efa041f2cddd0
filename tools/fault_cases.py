# SPDX-License-Identifier: Apache-2.0
"""The faults that tools/bench_faults puts into a run on Slurm, and how each is done. No torch."""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import psutil

from bt_megatron.checkpoint.folder import complete_checkpoints
from bt_megatron.checkpoint.manifest import data_files
from bt_megatron.errors import LaunchError
from slurm import client
from slurm.records import Records

START_SLURM = Path(__file__).with_name("start_slurm.sh")
NODES = ("node1", "node2")
FILL_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Scene:
    """Where faults happen."""

    folder: Path
    """Of the benchmark."""
    records: Records
    """Of the run."""
    chance: random.Random

    @property
    def slurm(self) -> Path:
        """Folder of the Slurm."""
        return self.folder / "slurm"

    @property
    def job(self) -> str:
        """The job of the run."""
        return self.records.jobs()[-1].job

    def ranks(self) -> list[psutil.Process]:
        """Return the training processes, without their helpers, by rank."""
        found = {}
        for process in psutil.process_iter():
            try:
                if not {"tools.faulty_train", str(self.folder)} <= set(process.cmdline()):
                    continue  # of something else, or of another bench
                parent = process.parent()
                if parent is None or "tools.faulty_train" in " ".join(parent.cmdline()[:4]):
                    continue  # a checkpoint's writer, forked from a rank
                environment = process.environ()
                if environment.get("SLURM_JOB_ID") == self.job:
                    found[int(environment["RANK"])] = process
            except (psutil.Error, KeyError):
                continue
        return [found[rank] for rank in sorted(found)]

    def signal_rank(self, number: int, *, but: Collection[int] = ()) -> None:
        """Send a signal to a rank, whichever, as soon as there is one.

        Args:
            number: of the signal.
            but: processes that do not count.
        """
        while True:
            ranks = [rank for rank in self.ranks() if rank.pid not in but]
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended by itself
                if ranks:
                    self.chance.choice(ranks).send_signal(number)
                    return
            time.sleep(0.05)


def kill(scene: Scene) -> None:
    """Kill a rank."""
    scene.signal_rank(signal.SIGKILL)


def kill_twice(scene: Scene) -> None:
    """Kill a rank, and one of the next attempt while that starts."""
    before = {process.pid for process in scene.ranks()}
    kill(scene)
    while not any(rank.pid not in before for rank in scene.ranks()):
        time.sleep(0.05)
    time.sleep(scene.chance.uniform(0, 6))
    scene.signal_rank(signal.SIGKILL, but=before)


def stop(scene: Scene) -> None:
    """Stop a rank, as a machine that is lost without a word."""
    scene.signal_rank(signal.SIGSTOP)


def hang(scene: Scene) -> None:
    """Let a rank wait for ever before its next batch."""
    (scene.folder / f"hang-{scene.chance.randrange(2)}").touch()


def time_limit(scene: Scene) -> None:
    """Send what Slurm sends before the time limit, to the job's script alone."""
    client.scancel(scene.job, "--batch", "--signal=USR1")


def requeue(scene: Scene) -> None:
    """Requeue the job, as an administrator does; nothing is saved first."""
    subprocess.run(["scontrol", "requeue", scene.job], check=True, timeout=60)


def dead_node(scene: Scene) -> None:
    """Kill the daemon of a node and let Slurm take it for dead; it comes back later."""
    node = scene.chance.choice(NODES)
    ranks = scene.ranks()
    os.kill(int((scene.slurm / f"slurmd-{node}.pid").read_text()), signal.SIGKILL)
    command = ["scontrol", "update", f"nodename={node}", "state=down", "reason=bench"]
    subprocess.run(command, check=True, timeout=60)  # Slurm itself would wait for SlurmdTimeout
    while any(rank.is_running() for rank in ranks):
        time.sleep(0.1)
    start_nodes(scene.slurm)


def start_nodes(slurm: Path) -> None:
    """Start a Slurm of two nodes with own network addresses, or what is not running of it.

    Raises:
        LaunchError: it does not start.
    """
    started = subprocess.run([START_SLURM, "-n", "2", "--netns", "-d", slurm], capture_output=True)
    if started.returncode:
        raise LaunchError(f"no Slurm could be started here: {started.stderr.decode()}")


def corrupt_checkpoint(scene: Scene) -> None:
    """Alter a byte of the newest complete checkpoint, then kill a rank."""
    newest = next(complete_checkpoints(scene.records.folder.checkpoints), None)
    if newest is not None:
        victim = max(data_files(newest), key=lambda path: path.stat().st_size)
        with victim.open("r+b") as file:
            file.seek(victim.stat().st_size // 2)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))
    kill(scene)


def full_disk(scene: Scene) -> None:
    """Fill the disk that the run writes to until the attempt has failed."""
    attempts = len(scene.records.attempts())
    ranks = scene.ranks()
    ballast = scene.records.folder.path.parent / "ballast"
    with ballast.open("wb", buffering=0) as file:
        size = FILL_BYTES
        while size:
            try:
                size = size if file.write(bytes(size)) == size else size // 2
            except OSError:
                size //= 2
    while attempts and any(rank.is_running() for rank in ranks):
        time.sleep(0.1)
    ballast.unlink()


def wrong_number(scene: Scene) -> None:
    """Let a rank compute one loss wrongly."""
    (scene.folder / f"nan-{scene.chance.randrange(2)}").touch()


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault."""

    kind: str
    cause: Callable[[Scene], None]
    weight: int
    """How often it comes, beside the others."""
    restarts: bool = True
    """Whether a new attempt follows."""
    faults: int = 1
    """How many it is."""


FAULTS = (
    Fault("killed rank", kill, 9),
    Fault("killed rank, again during the restart", kill_twice, 8, faults=2),
    Fault("stopped rank", stop, 2),
    Fault("hung rank", hang, 2),
    Fault("time limit or preemption", time_limit, 4),
    Fault("requeued job", requeue, 2),
    Fault("dead node", dead_node, 3),
    Fault("corrupt newest checkpoint", corrupt_checkpoint, 4),
    Fault("full disk", full_disk, 2),
    Fault("wrong loss once", wrong_number, 6, restarts=False),
)


def draw(count: int, chance: random.Random) -> list[Fault]:
    """Return faults in a random order: every kind, as often as its weight says, `count` in all."""
    total = sum(fault.weight * fault.faults for fault in FAULTS)
    drawn: list[Fault] = []
    for fault in FAULTS:
        drawn += [fault] * max(1, round(fault.weight * count / total))
    while sum(fault.faults for fault in drawn) < count:
        drawn.append(FAULTS[0])
    chance.shuffle(drawn)
    return drawn
