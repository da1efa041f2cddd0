# SPDX-License-Identifier: Apache-2.0
"""What the demo says at the end: results, where they are, and what to type next."""

from collections.abc import Mapping
from typing import Any

import orjson

from bt_megatron.config.schema import RunConfig
from bt_megatron.errors import DataError
from bt_megatron.observe.jsonl import read_records
from bt_megatron.observe.run_folder import RunFolder
from tools.benchmark_file import Row

NAMES = {"bigram": "bigram model", "unigram": "unigram model"}


def summary(config: RunConfig, seconds: Mapping[str, float]) -> list[str]:
    """Write the summary of a demo that is complete.

    Args:
        config: of its run.
        seconds: of each step that was run now, by title.

    Raises:
        DataError: a file of the run that it needs is not there.
    """
    folder = RunFolder.of(config)
    return [
        "",
        "== results",
        *_losses(folder),
        f"trained at {_last(folder, 'perf/tokens_per_s_average'):,.0f} tokens/s",
        "",
        *[f"{time:7.1f} s  {title}" for title, time in seconds.items()],
        f"{sum(seconds.values()):7.1f} s  in all",
        "",
        "== where it is",
        f"run folder     {folder.path}/ (docs/run-folder.md describes it)",
        f"loss plot      {folder.loss_plot}",
        f"MLflow         {_tracking_uri(config)}",
        f"exported model {folder.path / 'export'}/",
        "",
        "== what to type next (after `source .venv/bin/activate`)",
        *([f"mlflow ui --backend-store-uri {_tracking_uri(config)}"] if config.log.mlflow else []),
        f'python -m tools.generate {folder.path / "export"} --prompt "The whale"',
        "python -m bt_megatron plan configs/run/block-1.2b.yaml --world-size 64",
        "torchrun --nproc-per-node 8 -m bt_megatron train configs/run/block-420m.yaml",
    ]


def benchmark_rows(config: RunConfig, seconds: Mapping[str, float]) -> list[Row]:
    """Return the results of a demo as rows of a benchmark file; arguments as `summary`."""
    folder = RunFolder.of(config)
    case = f"demo/{config.name}"
    models = orjson.loads(folder.baselines.read_bytes())["models"]
    losses = {"model": _last(folder, "validation/loss")}
    losses |= {key: models[key]["loss"] for key in NAMES}
    return [
        *(
            Row(case=case, metric=f"validation_loss_{name}", value=loss, unit="nats/token")
            for name, loss in losses.items()
        ),
        Row(
            case=case,
            metric="tokens_per_s",
            value=_last(folder, "perf/tokens_per_s_average"),
            unit="tokens/s",
        ),
        *(
            Row(case=case, metric="seconds", value=time, unit="s", detail={"step": title})
            for title, time in seconds.items()
        ),
    ]


def _losses(folder: RunFolder) -> list[str]:
    """Write the validation loss beside those of the n-gram models."""
    try:
        models = orjson.loads(folder.baselines.read_bytes())["models"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{folder.baselines}: not there, or damaged. Remove it and start the demo again."
        ) from error
    rows = [("this model", _last(folder, "validation/loss"), _bits_per_byte(folder))]
    rows += [
        (name, models[key]["loss"], models[key]["bits_per_byte"]) for key, name in NAMES.items()
    ]
    return [
        f"validation, {name:<14} {loss:.4f} nats/token  {_number(bits)} bits/byte"
        for name, loss, bits in rows
    ]


def _last(folder: RunFolder, metric: str) -> Any:
    """Return the last value that was logged of a metric.

    Raises:
        DataError: it was never logged.
    """
    values = [record[metric] for record in read_records(folder.metrics) if metric in record]
    if not values:
        raise DataError(
            f"{folder.metrics}: it has no {metric}. Train longer than log.interval_steps."
        )
    return values[-1]


def _bits_per_byte(folder: RunFolder) -> float | None:
    value: float | None = _last(folder, "validation/bits_per_byte")
    return value


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"


def _tracking_uri(config: RunConfig) -> str:
    if config.log.mlflow is None:
        return "off"
    return config.log.mlflow.tracking_uri or f"sqlite:///{config.runs_dir}/mlflow.db"
