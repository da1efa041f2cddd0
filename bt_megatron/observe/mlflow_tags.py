# SPDX-License-Identifier: Apache-2.0
"""What MLflow shows of a run beside metrics: plan, code, user, jobs, attempts.

Pure: files of the run folder in, tags and parameters out. Sent again they change nothing.
"""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from bt_megatron.observe.run_folder import RunFolder

MLFLOW_COMMIT = "mlflow.source.git.commit"
MLFLOW_SOURCE, MLFLOW_SOURCE_TYPE = "mlflow.source.name", "mlflow.source.type"
MLFLOW_USER = "mlflow.user"
MLFLOW_PARENT = "mlflow.parentRunId"
"""Names that MLflow's pages know (mlflow/utils/mlflow_tags.py)."""
STARTS = ("started", "resumed")
PROGRAM = "bt_megatron"
"""What MLflow shows as source; it would show no more than the end of a whole command."""
PLAN_KEYS = (
    *("layout", "world_size", "tokens_per_step", "total_tokens", "training_flops"),
    *("parameters.total", "parameters.non_embedding", "flops.training_per_token"),
    *("kv_cache.per_token", "kv_cache.per_sequence"),
)
"""Values of plan.json that become parameters `plan.<key>`."""
LONGEST = 5000
"""Characters of a tag's value that every MLflow store takes."""


def environment_tags(folder: RunFolder) -> dict[str, str]:
    """Return the tags of environment.json; none if there is no such file."""
    value = _read(folder.environment)
    if not value:
        return {}
    tags = {
        MLFLOW_COMMIT: value["versions"].get("bt_megatron"),
        MLFLOW_SOURCE: PROGRAM,
        "command": value["command"],
        MLFLOW_SOURCE_TYPE: "JOB" if "slurm_job_id" in value else "LOCAL",
        MLFLOW_USER: value["user"],
        "gpus": ", ".join(value["gpus"]) or "none",
    }
    tags |= {f"version.{name}": v for name, v in value["versions"].items() if name != "bt_megatron"}
    return _texts(tags)


def plan_parameters(folder: RunFolder) -> dict[str, str]:
    """Return the parameters that plan.json gives; none if there is no such file."""
    plan = _read(folder.plan)
    found: dict[str, Any] = {}
    for key in PLAN_KEYS:
        value: Any = plan
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        found[f"plan.{key}"] = value
    return _texts(found)


def attempt_tags(events: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the tags of all attempts so far: how many, their jobs, one line for each.

    Args:
        events: of the run, from the first on.
    """
    starts = [event for event in events if event["event"] in STARTS]
    if not starts:
        return {}
    jobs = dict.fromkeys(start["slurm_job_id"] for start in starts if "slurm_job_id" in start)
    tags = {"attempts": str(len(starts)), "slurm.job_ids": ",".join(jobs)}
    for number, start in enumerate(starts, start=1):
        tags[f"attempt.{number:03d}"] = _attempt_line(start)
    return _texts({name: text for name, text in tags.items() if text})


def _attempt_line(start: Mapping[str, Any]) -> str:
    moment = datetime.datetime.fromtimestamp(start["time"], datetime.UTC)
    parts = [f"from step {start['step']} at {moment:%Y-%m-%d %H:%M:%S} UTC"]
    if "slurm_job_id" in start:
        parts.append(f"job {start['slurm_job_id']}.{start.get('slurm_restart_count', '0')}")
    if "slurm_array_job_id" in start:
        task = f"{start['slurm_array_job_id']}_{start.get('slurm_array_task_id')}"
        parts.append(f"array task {task}")
    where = start.get("slurm_nodes") or start.get("host")
    return ", ".join([*parts, *([f"on {where}"] if where else [])])


def _read(path: Any) -> dict[str, Any]:
    """Return the object in a file, or nothing if there is no such file."""
    if not path.is_file():
        return {}
    value = orjson.loads(path.read_bytes())
    return value if isinstance(value, dict) else {}


def _texts(tags: Mapping[str, Any]) -> dict[str, str]:
    """Return tags as text that fits; those without a value are left out."""
    return {name: str(value)[:LONGEST] for name, value in tags.items() if value is not None}
