# SPDX-License-Identifier: Apache-2.0
"""Work for many machines: inputs shared out between tasks, each with a data folder of its own.

    plan.json            what `python -m data_prep plan` wrote
    tasks/00000/ ...     made by `tokenize --plan plan.json --task 0`, on its own

A task is a list of inputs of about the same size in all. `merge` makes one folder of all tasks.
"""

import heapq
from dataclasses import asdict, dataclass
from pathlib import Path

from bt_megatron.data.manifest import parse_record, read_json, write_json
from bt_megatron.errors import DataError
from data_prep.inputs import name_shards
from data_prep.streams import STDIN
from data_prep.tokenizer import TextTokenizer

FILE_NAME = "plan.json"
FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedInput:
    """An input and its size when the plan was made."""

    path: str
    """Absolute."""
    size: int
    """Bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkList:
    """What `plan.json` holds."""

    tokenizer: str
    """Absolute path of a tokenizer.json."""
    tokenizer_sha256: str
    """Of its content."""
    eos_token: str
    """The token that ends a document."""
    tasks: tuple[tuple[PlannedInput, ...], ...]
    """Inputs of each task."""

    def inputs_of(self, task: int, *, plan: Path) -> list[Path]:
        """Return the inputs of a task.

        Raises:
            DataError: there is no such task, or an input has changed since the plan was made.
        """
        if not 0 <= task < len(self.tasks):
            raise DataError(
                f"{plan} - has no task {task}, but 0 to {len(self.tasks) - 1} - submit with "
                f"--array=0-{len(self.tasks) - 1}"
            )
        paths = []
        for planned in self.tasks[task]:
            path = Path(planned.path)
            size = path.stat().st_size if path.is_file() else None
            if size != planned.size:
                found = "is gone" if size is None else f"has {size} bytes"
                raise DataError(
                    f"{path} - {found}, {planned.size} bytes when {plan} was made - plan again"
                )
            paths.append(path)
        return paths


def make_plan(inputs: list[Path], tokenizer: TextTokenizer, *, tasks: int, eos: str) -> WorkList:
    """Share inputs out: the largest first, each to the task with the fewest bytes.

    The same inputs give the same plan, in whatever order they are named.

    Raises:
        DataError: an input is missing, or two would make the same shard.
    """
    named = name_shards(inputs)
    if STDIN in named.values():
        raise DataError("- - standard input cannot be shared out - give files")
    sizes = {name: path.stat().st_size for name, path in named.items()}
    shares: list[list[str]] = [[] for _ in range(min(tasks, len(named)))]
    loads = [(0, i) for i in range(len(shares))]
    for name in sorted(named, key=lambda name: (-sizes[name], name)):
        load, i = heapq.heappop(loads)
        shares[i].append(name)
        heapq.heappush(loads, (load + sizes[name], i))
    return WorkList(
        tokenizer=str(tokenizer.path.resolve()),
        tokenizer_sha256=tokenizer.record.sha256,
        eos_token=eos,
        tasks=tuple(
            tuple(
                PlannedInput(path=str(named[name].resolve()), size=sizes[name])
                for name in sorted(share)
            )
            for share in shares
        ),
    )


def save_plan(plan: WorkList, path: Path) -> None:
    """Write a plan, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"format": FORMAT, **asdict(plan)})


def load_plan(path: Path) -> WorkList:
    """Read a plan.

    Raises:
        DataError: it is missing or no plan, or its tokenizer has changed.
    """
    remedy = "make it with `python -m data_prep plan`"
    if not path.is_file():
        raise DataError(f"{path} - not found - {remedy}")
    body = read_json(path, remedy=remedy)
    if body.pop("format", None) != FORMAT:
        raise DataError(f"{path} - is of another format than {FORMAT} - {remedy}")
    plan = parse_record(WorkList, body, where=str(path), remedy=remedy)
    found = TextTokenizer(
        Path(plan.tokenizer), eos_token=plan.eos_token, engine="tokenizers"
    ).record.sha256
    if found != plan.tokenizer_sha256:
        raise DataError(
            f"{plan.tokenizer} - has sha256 {found[:12]}, {plan.tokenizer_sha256[:12]} when {path} "
            "was made - plan again"
        )
    return plan


def task_folder(plan: Path, task: int) -> Path:
    """Name the data folder of a task, beside the plan."""
    return plan.parent / "tasks" / f"{task:05d}"
