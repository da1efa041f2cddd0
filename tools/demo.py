# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.demo`: from text to generated text on two CPU cores, in minutes.

Every step is a plain command that is printed before it is run, and can be typed
by hand. What is there already and fits is kept, so the demo can be interrupted
and started again. The steps end with a summary (`tools/demo_summary.py`).
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bt_megatron.checkpoint.folder import complete_checkpoints
from bt_megatron.checkpoint.manifest import MANIFEST, read_manifest
from bt_megatron.checkpoint.resume import compare_for_resume, require_resumable
from bt_megatron.config.load import from_mapping, load_run
from bt_megatron.config.schema import RunConfig
from bt_megatron.data.manifest import FILE_NAME, load_manifest, sha256_of
from bt_megatron.errors import BtError
from bt_megatron.observe.run_folder import RunFolder
from tools.benchmark_file import write_benchmark
from tools.demo_summary import benchmark_rows, summary

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "configs/run/demo.yaml"
SAMPLE = "data_prep/sample/state-of-the-union-and-moby-dick.jsonl.zst"
PROMPTS = (
    "My fellow citizens, the state of our",
    "The Congress of the United States",
    "Call me Ishmael. Some years ago",
)
INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command of the demo."""

    title: str
    """What it does, for people."""
    command: tuple[str, ...]
    """As one would type it; `python` and `torchrun` are those of this environment."""
    is_done: Callable[[], bool] = field(default=lambda: False)
    """Whether its result is there and fits."""
    threads: int | None = None
    """OMP_NUM_THREADS of each process; none: as it is."""

    @property
    def typed(self) -> str:
        """The line that a person would type."""
        variables = f"OMP_NUM_THREADS={self.threads} " if self.threads else ""
        return variables + shlex.join(self.command)


def plan_steps(config: RunConfig, *, settings: Sequence[str], processes: int) -> list[Step]:
    """List the commands of the demo, in order.

    Args:
        config: of the run; `settings` are in it.
        settings: `a.b=c` to pass on.
        processes: that train.
    """
    assert config.data.path is not None, "the demo has one data folder"
    folder, data = RunFolder.of(config), Path(config.data.path)
    tokenizer, export = data / "tokenizer.json", folder.path / "export"
    run = [CONFIG, *(word for setting in settings for word in ("--set", setting))]
    train = ("-m", "bt_megatron", "train", *run)
    launcher = ("torchrun", "--nproc-per-node", str(processes)) if processes > 1 else ("python",)
    size = str(config.model.vocab_size)
    module = ("python", "-m")
    return [
        Step(
            title="train a tokenizer on the sample corpus",
            command=(*module, "data_prep", "train-tokenizer", SAMPLE)
            + ("--vocab-size", size, "--out", str(tokenizer)),
            is_done=tokenizer.is_file,
        ),
        Step(
            title="turn the text into token shards",
            command=(*module, "data_prep", "tokenize", SAMPLE)
            + ("--tokenizer", str(tokenizer), "--out", str(data)),
            is_done=lambda: _is_tokenized(data),
        ),
        Step(
            title="measure what counting words reaches",
            command=(*module, "tools.ngram_baseline", *run),
            is_done=lambda: _is_newer(folder.baselines, data / FILE_NAME),
        ),
        Step(
            title="train a Block Transformer" + (" with 2 processes" if processes > 1 else ""),
            command=(*launcher, *train),
            is_done=lambda: _is_trained(config),
            threads=1,
        ),
        Step(
            title="draw the loss",
            command=(*module, "tools.plot_loss", config.run_dir),
            is_done=lambda: _is_newer(folder.loss_plot, folder.metrics, folder.baselines),
        ),
        Step(
            title="export a standalone Hugging Face folder, checked against the trainer",
            command=(*module, "tools.export", config.run_dir, str(export)),
            is_done=lambda: _is_newer(export / "config.json", *_newest_manifest(folder)),
        ),
        *(
            Step(
                title="write on from a few words",
                command=(*module, "tools.generate", str(export), "--prompt", prompt)
                + ("--max-new-tokens", "48", "--temperature", "0.7", "--seed", str(seed)),
            )
            for seed, prompt in enumerate(PROMPTS, start=1)
        ),
    ]


def _is_newer(path: Path, *sources: Path) -> bool:
    """Tell whether a file is there and no source, which must be there too, is newer."""
    if not all(file.is_file() for file in (path, *sources)):
        return False
    return all(path.stat().st_mtime >= source.stat().st_mtime for source in sources)


def _is_tokenized(data: Path) -> bool:
    """Tell whether a data folder is whole and holds the sample corpus."""
    try:
        shards = load_manifest(data).shards
    except BtError:
        return False
    return sha256_of(Path(SAMPLE)) in [shard.source.sha256 for shard in shards]


def _newest_manifest(folder: RunFolder) -> list[Path]:
    """Return the manifest of the newest complete checkpoint, if there is one."""
    return [newest / MANIFEST for newest in complete_checkpoints(folder.checkpoints)][:1]


def _is_trained(config: RunConfig) -> bool:
    """Tell whether the newest checkpoint ends exactly this run."""
    for manifest in _newest_manifest(RunFolder.of(config)):
        try:
            newest = read_manifest(manifest.parent)
            saved = from_mapping(RunConfig, newest.config, str(manifest))
            require_resumable(compare_for_resume(saved, config))
        except BtError:
            return False  # the trainer tells what is wrong
        return newest.step >= config.train.steps
    return False


class _Commands:
    """Runs one command after another; Ctrl-C asks the running one to stop and save."""

    def __init__(self) -> None:
        self.is_interrupted = False
        self._process: subprocess.Popen[bytes] | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    def run(self, step: Step) -> int:
        """Run one step and return its exit code."""
        program, *arguments = step.command
        module = ["-m", "torch.distributed.run"] if program == "torchrun" else []
        threads = {"OMP_NUM_THREADS": str(step.threads)} if step.threads else {}
        # In a session of its own: torchrun passes a signal on, so that ranks which also get
        # the terminal's would be told twice, and twice means at once.
        self._process = subprocess.Popen(
            [sys.executable, *module, *arguments],
            env={**os.environ, **threads},
            start_new_session=True,
        )
        return self._process.wait()

    def _stop(self, number: int, _frame: object) -> None:
        if self._process is None or self._process.poll() is not None:
            raise KeyboardInterrupt
        if self.is_interrupted:
            os.killpg(self._process.pid, signal.SIGKILL)
        self.is_interrupted = True
        say("\nstopping; training saves a checkpoint first (once more: at once)")
        self._process.send_signal(signal.SIGTERM if _has_agent(self._process) else signal.SIGINT)


def _has_agent(process: "subprocess.Popen[bytes]") -> bool:
    assert isinstance(process.args, list), "it was started with a list"
    return "torch.distributed.run" in process.args


def run_steps(steps: Sequence[Step]) -> dict[str, float]:
    """Run what is not done, printing each command.

    Returns:
        Seconds by title of what was run.

    Raises:
        KeyboardInterrupt: the user interrupted a step.
        BtError: a step failed; it has said why.
    """
    commands = _Commands()
    seconds: dict[str, float] = {}
    for step in steps:
        say(f"\n== {step.title}\n$ {step.typed}")
        if step.is_done():
            say("is there already and fits: kept")
            continue
        start = time.monotonic()
        code = commands.run(step)
        if commands.is_interrupted:
            raise KeyboardInterrupt
        if code:
            error = BtError(f"this command ended with exit code {code}: {step.typed}")
            error.exit_code = code if code > 0 else 128 - code
            raise error
        seconds[step.title] = seconds.get(step.title, 0.0) + time.monotonic() - start
    return seconds


def _default_processes() -> int:
    """Two processes where there are two GPUs, or no GPU and two cores; else one."""
    import torch  # late: --help needs no torch

    devices = torch.cuda.device_count() or len(os.sched_getaffinity(0))
    return min(2, devices)


def say(text: str) -> None:
    """Print at once, so that lines of the commands come in between as they should."""
    print(text, flush=True)  # noqa: T201


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo",
        description="From text to generated text: tokenize, train, export, generate.",
    )
    parser.add_argument("--processes", type=int, choices=(1, 2), help="that train (default: 2)")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--benchmark", type=Path, metavar="FILE", help="write the results as JSON")
    arguments = parser.parse_args(argv)
    os.chdir(ROOT)
    try:
        config = load_run([CONFIG], arguments.settings).config
        steps = plan_steps(
            config,
            settings=arguments.settings,
            processes=arguments.processes or _default_processes(),
        )
        seconds = run_steps(steps)
        for line in summary(config, seconds):
            say(line)
        if arguments.benchmark is not None:
            write_benchmark(arguments.benchmark, benchmark_rows(config, seconds))
    except BtError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt:
        say("interrupted (torchrun ends so with a traceback); the same command goes on from here")
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
