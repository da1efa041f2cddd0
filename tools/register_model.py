# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.register_model EXPORTED --name NAME`: an exported folder into MLflow's registry.

What is registered has a signature and an example, loads with `mlflow.pyfunc.load_model` where
nothing of this project is installed, and writes on from prompts. Before it is registered it is
loaded once from what MLflow has stored. With --run it belongs to the MLflow run of that training.
"""

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console

from bt_megatron.checkpoint.safetensors_files import has_tensors
from bt_megatron.config.schema import MlflowConfig
from bt_megatron.errors import BtError, ConfigError, ConversionError
from bt_megatron.observe.mlflow_forwarder import describe, without_password
from bt_megatron.observe.mlflow_run import CLIENT_SETTINGS
from bt_megatron.observe.run_folder import RunFolder, open_run_folder
from bt_megatron.observe.tracking_state import load_state, resolve_uri

CODE = Path(__file__).resolve().parents[1] / "bt_megatron" / "inference" / "mlflow_model.py"
"""What MLflow runs; not imported here, because it needs to be imported by MLflow."""
FOLDER = "exported"
"""Name under which that code finds the exported folder."""
REQUIREMENTS = ("torch", "transformers", "safetensors", "tokenizers", "pandas", "numpy")
"""What a registered model needs besides MLflow, in the versions that made it."""
EXAMPLE = ["The state of the union is", "Call me"]
PARAMETERS = {"max_new_tokens": 32, "temperature": 0.0, "seed": 0}
"""Parameters of a prediction and their defaults."""
UPLOAD_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "600",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""Weights take longer than metrics."""


@dataclass(frozen=True, slots=True)
class Registered:
    """A new version of a registered model."""

    name: str
    version: str
    example: list[str]
    """What it writes on from the first words of `EXAMPLE`, loaded from the store."""

    @property
    def uri(self) -> str:
        """What `mlflow.pyfunc.load_model` takes."""
        return f"models:/{self.name}/{self.version}"


def register(
    exported: Path, *, name: str, run: RunFolder | None, tracking_uri: str | None
) -> Registered:
    """Log an exported folder as a model and register it under a name.

    Args:
        exported: what tools.export made, with a tokenizer.
        name: in the registry.
        run: the training it comes from.
        tracking_uri: none: where the run was tracked.

    Raises:
        ConversionError: the folder is not an exported model with a tokenizer.
        ConfigError: neither a run that was tracked nor an URI is given.
        BtError: MLflow did not take it.
    """
    for file in ("config.json", "tokenizer.json"):
        if not (exported / file).is_file() or not has_tensors(exported):
            raise ConversionError(
                f"{exported}: no {file} or no weights. Name a folder that tools.export made with "
                "a tokenizer."
            )
    state = load_state(run) if run is not None else None
    if tracking_uri is None and (run is None or state is None):
        raise ConfigError(
            "--tracking-uri: there is no run that was tracked. Pass the URI, or --run RUN_DIR."
        )
    uri = tracking_uri or resolve_uri(state, run)  # type: ignore[arg-type]
    try:
        run_id = state.run_id if state is not None and tracking_uri is None else None
        experiment = state.experiment if state is not None else MlflowConfig().experiment
        return _register(exported, name=name, uri=uri, experiment=experiment, run_id=run_id)
    except Exception as error:  # whatever MLflow raises becomes one line for the user
        raise BtError(
            f"{without_password(uri)}: MLflow did not take {exported} ({describe(error)}). Start "
            "the server or pass --tracking-uri, then run the same command again."
        ) from error


def _register(
    exported: Path, *, name: str, uri: str, experiment: str, run_id: str | None
) -> Registered:
    os.environ |= {**CLIENT_SETTINGS, **UPLOAD_SETTINGS}
    import mlflow
    import pandas as pd
    from mlflow.models import infer_signature
    from transformers.utils import logging as transformers_logging

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    example = pd.DataFrame({"prompt": EXAMPLE})
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    with _inside(run_id, experiment=experiment, name=name):
        info = mlflow.pyfunc.log_model(
            name="exported",
            python_model=str(CODE),
            artifacts={FOLDER: str(exported)},
            signature=infer_signature(example, EXAMPLE, params=PARAMETERS),
            input_example=(example, PARAMETERS),
            pip_requirements=_requirements(),
            metadata={"source": exported.name},
        )
    written = mlflow.pyfunc.load_model(info.model_uri).predict(example, params=PARAMETERS)
    version = mlflow.register_model(info.model_uri, name)
    return Registered(name, str(version.version), list(written))


@contextlib.contextmanager
def _inside(run_id: str | None, *, experiment: str, name: str) -> Iterator[None]:
    """Log inside of the run of the training, whose status stays as it is, or of a new run."""
    import mlflow

    if run_id is None:
        mlflow.set_experiment(experiment)
        with mlflow.start_run(run_name=f"register {name}"):
            yield
        return
    before = mlflow.MlflowClient().get_run(run_id).info.status
    with mlflow.start_run(run_id=run_id):
        yield
    if before != "RUNNING":
        mlflow.MlflowClient().set_terminated(run_id, before)


def _requirements() -> list[str]:
    """Return packages with their versions; a local version (2.11.0+cu130) is none of an index."""
    names: list[Any] = ["mlflow", *REQUIREMENTS]
    return [f"{name}=={metadata.version(name).split('+')[0]}" for name in names]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.register_model",
        description="Put an exported model into MLflow's registry.",
    )
    parser.add_argument("exported", type=Path, metavar="EXPORTED", help="what tools.export made")
    parser.add_argument("--name", required=True, help="name in the registry")
    parser.add_argument("--run", metavar="RUN_DIR", help="the training: <runs_dir>/<name>")
    parser.add_argument("--tracking-uri", help="MLflow URI (default: where the run was tracked)")
    arguments = parser.parse_args(argv)
    try:
        run = open_run_folder(arguments.run) if arguments.run else None
        with Console(stderr=True).status("uploading, then loading what was stored"):
            done = register(
                arguments.exported,
                name=arguments.name,
                run=run,
                tracking_uri=arguments.tracking_uri,
            )
    except BtError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    print(f"{done.uri} is registered; after {EXAMPLE[0]!r} it writes {done.example[0]!r}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
