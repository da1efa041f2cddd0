# SPDX-License-Identifier: Apache-2.0
"""An exported folder as an MLflow model: text in, text out.

MLflow copies this file into the model and runs it wherever the model is loaded, so it imports
nothing of this project: torch, transformers and MLflow are enough.
"""

from typing import Any

import mlflow
import pandas as pd
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

FOLDER = "exported"
"""Name of the artifact that is the exported folder."""


class TextGenerator(mlflow.pyfunc.PythonModel):  # type: ignore[misc, name-defined]
    """Writes on from prompts."""

    def load_context(self, context: Any) -> None:
        """Load weights and tokenizer from the exported folder."""
        folder = context.artifacts[FOLDER]
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        loaded = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
        self._model = loaded.to(self._device).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[str]:
        """Return what follows each prompt.

        Args:
            context: not used; what is needed is loaded.
            model_input: one column `prompt`.
            params: max_new_tokens; temperature, where 0 takes the best token; seed.
        """
        params = params or {}
        torch.manual_seed(int(params.get("seed", 0)))
        temperature = float(params.get("temperature", 0.0))
        how: dict[str, Any] = {"do_sample": temperature > 0}
        if temperature > 0:
            how["temperature"] = temperature
        return [
            self._write_on(prompt, max_new_tokens=int(params.get("max_new_tokens", 32)), **how)
            for prompt in model_input["prompt"]
        ]

    def _write_on(self, prompt: str, **how: Any) -> str:
        tokens = self._tokenizer(prompt, return_tensors="pt").input_ids.to(self._device)
        written = self._model.generate(tokens, **how)[0, tokens.shape[1] :]
        return str(self._tokenizer.decode(written, skip_special_tokens=True))


mlflow.models.set_model(TextGenerator())
