# SPDX-License-Identifier: Apache-2.0
"""The paper's zero-shot tasks with lm-evaluation-harness, without a network.

Each task is lm-eval's own YAML, so prompts, choices and metrics are its own; only the place that
the documents are read from is replaced, by files that `python -m tools.fetch_tasks` writes.
"""

import logging
import math
import os
import tempfile
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from tokenizers import Tokenizer

from bt_megatron.errors import ConfigError, DataError
from bt_megatron.evaluation.likelihood import LanguageModel
from bt_megatron.evaluation.measurement import Measurement, OnProgress

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


@dataclass(frozen=True, slots=True)
class Task:
    """One of lm-eval's tasks."""

    stock: str
    """Its YAML in lm-eval's `tasks` folder."""
    split: str
    """Part of the data set that the file holds."""


TASKS = {
    "lambada_openai": Task("lambada/lambada_openai.yaml", "test"),
    "hellaswag": Task("hellaswag/hellaswag.yaml", "validation"),
    "piqa": Task("piqa/piqa.yaml", "validation"),
    "arc_easy": Task("arc/arc_easy.yaml", "test"),
    "sciq": Task("sciq/sciq.yaml", "validation"),
    "winogrande": Task("winogrande/default.yaml", "validation"),
}
"""Tasks of the paper but WikiText, which no package holds, and two that it does not have: SciQ
(on its validation split; lm-eval takes the test split) and WinoGrande."""


def require_lm_eval() -> str:
    """Return the version of lm-eval.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return version("lm_eval")
    except ImportError as error:
        raise ConfigError(
            "lm-eval is not installed, and zero-shot tasks need it. pip install '.[evaluate]', or "
            "choose other parts with --only."
        ) from error


def task_file(data: Path, task: str) -> Path:
    """Return the documents of a task.

    Raises:
        DataError: they are not there.
    """
    path = data / f"{task}.jsonl"
    if not path.is_file():
        raise DataError(f"{path}: not there. Run python -m tools.fetch_tasks {data}")
    return path


def measure_zero_shot(
    model: LanguageModel,
    tokenizer: Tokenizer,
    *,
    data: Path,
    task: str,
    limit: int | None,
    on_progress: OnProgress,
) -> Measurement:
    """Run one task.

    Args:
        model: the model.
        tokenizer: of the model.
        data: folder of tools.fetch_tasks.
        task: one of `TASKS`.
        limit: number of documents; None: all.
        on_progress: is told of progress.

    Raises:
        BtError: lm-eval or the documents are not there.
    """
    require_lm_eval()
    task_file(data, task)
    os.environ.update(OFFLINE)  # before lm_eval is imported
    import datasets
    from lm_eval import simple_evaluate
    from lm_eval.api import task as lm_eval_task
    from lm_eval.tasks import TaskManager
    from tqdm import tqdm

    from bt_megatron.evaluation.lm_eval_model import EvaluatedModel

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    lm_eval_task.tqdm = partial(tqdm, disable=True)  # a bar that would fill the log of a job
    name = f"offline_{task}"
    with tempfile.TemporaryDirectory(prefix="zero-shot-") as folder:
        write_task(Path(folder), task, data=data, cache=Path(folder) / "cache")
        done = simple_evaluate(
            model=EvaluatedModel(model, tokenizer, on_progress=on_progress),
            tasks=[name],
            num_fewshot=0,
            limit=limit,
            bootstrap_iters=0,
            log_samples=False,
            task_manager=TaskManager(include_path=folder, include_defaults=False),
        )
    samples = done["n-samples"][name]["effective"]
    metrics = {
        key.removesuffix(",none"): float(value)
        for key, value in done["results"][name].items()
        if key.endswith(",none") and "stderr" not in key
    }
    return Measurement(
        name=f"zero-shot/{task}",
        metrics=metrics,
        detail={
            "samples": samples,
            "of": done["n-samples"][name]["original"],
            "split": TASKS[task].split,
            "standard_error": _standard_errors(metrics, samples),
        },
    )


def write_task(folder: Path, name: str, *, data: Path, cache: Path | None = None) -> Path:
    """Write a YAML that is lm-eval's but for the documents.

    Args:
        folder: for lm-eval's `--include_path`.
        name: of one of `TASKS`; the new task is `offline_` and this.
        data: folder of tools.fetch_tasks.
        cache: where `datasets` keeps its copy of the documents; None: where it always does.

    Raises:
        BtError: lm-eval or the documents are not there.
    """
    require_lm_eval()
    package = find_spec("lm_eval")
    assert package is not None, "it has a version"
    assert package.submodule_search_locations is not None, "it is a package"
    stock = Path(package.submodule_search_locations[0]) / "tasks" / TASKS[name].stock
    kwargs: dict[str, Any] = {"data_files": {"test": str(task_file(data, name).resolve())}}
    if cache is not None:
        kwargs["cache_dir"] = str(cache)
    config = {
        "include": str(stock),
        "task": f"offline_{name}",
        "tag": None,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": kwargs,
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
        "fewshot_split": None,
    }
    path = folder / f"offline_{name}.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def _standard_errors(metrics: dict[str, float], samples: int) -> dict[str, float]:
    """Return the standard errors of accuracies, sqrt(p (1 - p) / (n - 1)), as lm-eval's."""
    return {
        key: math.sqrt(value * (1 - value) / (samples - 1))
        for key, value in metrics.items()
        if key.startswith("acc") and samples > 1
    }
