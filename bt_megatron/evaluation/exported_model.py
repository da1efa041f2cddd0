# SPDX-License-Identifier: Apache-2.0
"""Scores tokens with an exported folder's own code, in batches of whole blocks.

Of a Block Transformer only what is asked for is computed: embedder and block decoder read all
blocks, the token decoder those that hold a scored token, the head the places that predict one.
Each text starts `left_padding` places into its first block, as in the exported model's forward(),
so these are the log-likelihoods that any user of the folder gets. Shapes:

    B texts    N blocks    k tokens per block    T scored tokens    V vocabulary
    M blocks that hold a scored token    G, H widths of block and token decoder
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from tokenizers import Tokenizer
from torch import Tensor

from bt_megatron.errors import ConversionError
from bt_megatron.evaluation.likelihood import OnDone, Request, TokenScores

BLOCK_TRANSFORMER = "block_transformer"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BATCH_TOKENS = {"cpu": 8_192, "cuda": 131_072}
"""Tokens of a batch, pads included."""
LOGITS_AT_ONCE = 64_000_000
"""Logits that exist at a time: 0.25 GB in float32."""
UNKNOWN_MAX_LENGTH = 2048
"""Of a folder that does not say how long its training sequences were: the paper's."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """Texts laid out in blocks, and the scored tokens that a block predicts."""

    ids: Tensor
    """[B, N*k]"""
    mask: Tensor
    """[B, N*k] false for pads."""
    text: Tensor
    """[T] row of each scored token."""
    place: Tensor
    """[T] its place in the row."""


def _no_report(count: int) -> None:
    """Report to nobody."""


class ExportedModel:
    """A `LanguageModel`: block models and GPT-NeoX models."""

    def __init__(
        self,
        folder: Path,
        *,
        dtype: str | None = None,
        left_padding: int | None = None,
        batch_tokens: int | None = None,
        device: str | None = None,
    ) -> None:
        """Load a folder.

        Args:
            folder: what tools.export wrote.
            dtype: of the computation, fp32 or bf16; None: bf16 on a GPU, fp32 on a CPU.
            left_padding: pads in front of each text; None: as the folder says.
            batch_tokens: tokens of a batch; None: `BATCH_TOKENS`.
            device: cpu or cuda; None: a GPU if there is one.

        Raises:
            ConversionError: it is not an exported folder, or cannot be padded so.
        """
        config = _read_config(folder)
        self.is_block = config["model_type"] == BLOCK_TRANSFORMER
        self.vocab_size = int(config["vocab_size"])
        self.block_length = int(config["block_length"]) if self.is_block else 1
        self.left_padding = config.get("left_padding", 0) if left_padding is None else left_padding
        if not 0 <= self.left_padding < self.block_length:
            raise ConversionError(
                f"{folder}: {self.left_padding} pads in front of texts, but a block has "
                f"{self.block_length} tokens. Use 0 to {self.block_length - 1}."
            )
        self.max_length = int(config.get("max_position_embeddings") or UNKNOWN_MAX_LENGTH)
        self.eos_id = int(config["eos_token_id"])
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = dtype or ("bf16" if self.device == "cuda" else "fp32")
        self._batch_tokens = batch_tokens or BATCH_TOKENS[self.device]
        self._model = _load(folder, DTYPES[self.dtype]).to(self.device)

    @torch.inference_mode()
    def score(self, requests: Sequence[Request], on_done: OnDone = _no_report) -> list[TokenScores]:
        """Score continuations; as `LanguageModel.score`."""
        scores: dict[int, TokenScores] = {}
        for indices in self._batches([len(r.context) + len(r.continuation) for r in requests]):
            texts = [requests[index] for index in indices]
            batch = self._lay_out(texts)
            found = self._probabilities(batch)
            owner = batch.text.cpu().numpy()
            for row, (index, text) in enumerate(zip(indices, texts, strict=True)):
                mine = owner == row
                scores[index] = self._with_unpredicted(text, found[0][mine], found[1][mine])
            on_done(len(indices))
        return [scores[index] for index in range(len(requests))]

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        on_done: OnDone = _no_report,
    ) -> list[list[int]]:
        """Continue prompts greedily; as `LanguageModel.generate`.

        The exported model ends prompts with a whole block, whatever `left_padding` is.
        """
        written: dict[int, list[int]] = {}
        for indices in self._batches([len(prompt) + max_new_tokens for prompt in prompts]):
            longest = max(len(prompts[index]) for index in indices)
            ids = torch.full((len(indices), longest), self.eos_id)
            mask = torch.zeros_like(ids)
            for row, index in enumerate(indices):
                ids[row, longest - len(prompts[index]) :] = torch.tensor(list(prompts[index]))
                mask[row, longest - len(prompts[index]) :] = 1
            output = self._model.generate(
                ids.to(self.device),
                attention_mask=mask.to(self.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=self.eos_id,
                pad_token_id=self.eos_id,
            )
            for index, new in zip(indices, output[:, longest:].tolist(), strict=True):
                written[index] = new[: new.index(self.eos_id)] if self.eos_id in new else new
            on_done(len(indices))
        return [written[index] for index in range(len(prompts))]

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Yield indices of texts of about one length, the longest first: what does not fit into
        memory fails at once."""
        batch: list[int] = []
        for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
            longest = lengths[batch[0]] if batch else 0
            if batch and (len(batch) + 1) * (longest + self.block_length) > self._batch_tokens:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _lay_out(self, requests: Sequence[Request]) -> _Batch:
        """Cut texts to their last max_length + 1 tokens and put them into whole blocks."""
        k, pads = self.block_length, self.left_padding
        texts = [
            [*request.context, *request.continuation][-self.max_length - 1 :]
            for request in requests
        ]
        width = -(-(pads + max(map(len, texts))) // k) * k
        ids = np.full((len(texts), width), self.eos_id, dtype=np.int64)
        mask = np.zeros(ids.shape, dtype=np.bool_)
        rows, places = [], []
        for row, (tokens, request) in enumerate(zip(texts, requests, strict=True)):
            assert len(request.continuation) < len(tokens), "the continuation was cut"
            end = pads + len(tokens)
            ids[row, pads:end] = tokens
            mask[row, pads:end] = True
            scored = np.arange(end - len(request.continuation), end)
            places.append(scored[scored >= k])
            rows.append(np.full(len(places[-1]), row))
        parts = (ids, mask, np.concatenate(rows), np.concatenate(places))
        return _Batch(*(torch.from_numpy(part).to(self.device) for part in parts))

    def _probabilities(self, batch: _Batch) -> tuple[np.ndarray, np.ndarray]:
        """Return log-probabilities [T] and whether each token is the likeliest [T]."""
        if len(batch.text) == 0:
            return np.zeros(0, np.float32), np.zeros(0, np.bool_)
        states = self._block_states(batch) if self.is_block else self._vanilla_states(batch)
        targets = batch.ids[batch.text, batch.place]
        rows = max(1, LOGITS_AT_ONCE // self.vocab_size)
        logs, best = [], []
        for part, wanted in zip(states.split(rows), targets.split(rows), strict=True):
            logits = self._head(part).float()  # [rows, V]
            chosen = logits.gather(-1, wanted[:, None])[:, 0]
            logs.append(chosen - logits.logsumexp(-1))
            best.append(logits.argmax(-1) == wanted)
        return torch.cat(logs).cpu().numpy(), torch.cat(best).cpu().numpy()

    def _block_states(self, batch: _Batch) -> Tensor:
        """Return the token decoder's states [T, H] that predict the scored tokens."""
        k, model = self.block_length, self._model
        ids, mask = batch.ids.unflatten(1, (-1, k)), batch.mask.unflatten(1, (-1, k))  # [B, N, k]
        embeddings = model.embed_blocks(ids[:, :-1], mask[:, :-1])
        context = model.decode_blocks(embeddings, mask[:, :-1].any(-1))  # [B, N-1, G]
        count = ids.shape[1]
        wanted, row = torch.unique(batch.text * count + batch.place // k, return_inverse=True)
        text, block = wanted // count, wanted % count  # [M]
        expanded = model.token_decoder.expansion_layer(context[text, block - 1])
        states = model.decode_tokens(
            expanded[None], ids[text, block][None], mask[text, block][None]
        )
        return states[0][row, batch.place % k]

    def _vanilla_states(self, batch: _Batch) -> Tensor:
        """Return the states [T, H] of the tokens before the scored ones."""
        hidden = self._model.base_model(input_ids=batch.ids, use_cache=False).last_hidden_state
        return hidden[batch.text, batch.place - 1]

    def _head(self, states: Tensor) -> Tensor:
        """Return logits [T, V]."""
        if self.is_block:
            return self._model.token_decoder.head(states)
        return self._model.get_output_embeddings()(states)

    def _with_unpredicted(self, text: Request, logs: np.ndarray, best: np.ndarray) -> TokenScores:
        """Put the uniform distribution in front, for tokens of a block that nothing predicts."""
        missing = len(text.continuation) - len(logs)
        uniform = np.full(missing, -np.log(self.vocab_size), dtype=np.float32)
        return TokenScores(
            np.concatenate([uniform, logs]), np.concatenate([np.zeros(missing, np.bool_), best])
        )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = orjson.loads(path.read_bytes())
        kind = config["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConversionError(
            f"{path}: cannot be read ({error}). Name a folder that tools.export made."
        ) from error
    if kind not in (BLOCK_TRANSFORMER, "gpt_neox"):
        raise ConversionError(
            f"{path}: model_type is {kind!r}. Only what tools.export writes can be evaluated: "
            f"{BLOCK_TRANSFORMER!r} and 'gpt_neox'."
        )
    return dict(config)


def read_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of an exported folder; it cuts and pads nothing.

    Raises:
        ConversionError: there is none.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ConversionError(
            f"{path}: not there. Export the model again with --tokenizer tokenizer.json."
        )
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _load(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=True, local_files_only=True, dtype=dtype
        )
    except (OSError, ValueError) as error:
        raise ConversionError(
            f"{folder}: cannot be loaded ({error}). Export the model again."
        ) from error
    return model.eval()
