# SPDX-License-Identifier: Apache-2.0
"""Any `LanguageModel` as a model of lm-evaluation-harness (0.4.13).

What it answers is what lm-eval's own `hf` model answers for the same folder in the same
precision: the same tokens, the same windows, the same treatment of an empty context.
"""

from typing import Any

from lm_eval.api.model import TemplateLM
from tokenizers import Tokenizer

from bt_megatron.evaluation.likelihood import (
    LanguageModel,
    Request,
    TokenScores,
    rolling_requests,
)
from bt_megatron.evaluation.measurement import Counter, OnProgress

MAX_GENERATED_TOKENS = 256
"""Unless the task says otherwise; as lm-eval's `hf` model."""


class EvaluatedModel(TemplateLM):
    """Turns lm-eval's texts into tokens and asks a `LanguageModel` about them."""

    def __init__(
        self, model: LanguageModel, tokenizer: Tokenizer, *, on_progress: OnProgress
    ) -> None:
        super().__init__()
        self._model = model
        self._tokenizer = tokenizer
        self._on_progress = on_progress

    @property
    def eot_token_id(self) -> int:
        """Stands in front of texts without a context."""
        return self._model.eos_id

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Return the ids of a text, nothing added."""
        return self._tokenizer.encode(string, add_special_tokens=False).ids

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Return log-likelihoods of continuations; lm-eval's own bars are left out."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Answer; a continuation that the model cannot read at once (lm-eval's `hf` model refuses
        it) is scored in windows, as a whole text is."""
        limit = self._model.max_length
        return [
            (sum(found.log_likelihood for found in parts), all(found.is_greedy for found in parts))
            for parts in self._score(
                [
                    [Request(context, continuation)]
                    if len(continuation) <= limit
                    else list(
                        rolling_requests(continuation, first_context=context[-1], max_length=limit)
                    )
                    for _texts, context, continuation in requests
                ]
            )
        ]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of whole texts, in windows."""
        first, limit = self._model.eos_id, self._model.max_length
        texts = [self.tok_encode(request.args[0]) for request in requests]
        windows = [
            list(rolling_requests(text, first_context=first, max_length=limit)) for text in texts
        ]
        return [sum(part.log_likelihood for part in parts) for parts in self._score(windows)]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Return greedy continuations, each cut before the first of its stop strings."""
        limits = [request.args[1].get("max_gen_toks", MAX_GENERATED_TOKENS) for request in requests]
        room = self._model.max_length - max(limits, default=0)
        prompts = [self.tok_encode(request.args[0])[-room:] for request in requests]
        report = Counter(len(prompts), self._on_progress)
        written = self._model.generate(
            prompts, max_new_tokens=max(limits, default=0), on_done=report
        )
        texts = []
        for request, limit, new in zip(requests, limits, written, strict=True):
            text = self._tokenizer.decode(new[:limit])
            stops = request.args[1].get("until") or []
            for stop in [stops] if isinstance(stops, str) else stops:
                text = text.split(stop)[0] if stop else text
            texts.append(text)
        return texts

    def _score(self, windows: list[list[Request]]) -> list[list[TokenScores]]:
        """Score the windows of each text."""
        flat = [window for text in windows for window in text]
        found = iter(self._model.score(flat, Counter(len(flat), self._on_progress)))
        return [[next(found) for _ in text] for text in windows]
