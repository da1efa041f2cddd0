# SPDX-License-Identifier: Apache-2.0
"""README.md of an exported folder: where the weights come from, use, what was checked."""

from collections.abc import Mapping
from typing import Any

from bt_megatron.config.params import count_parameters
from bt_megatron.config.schema import DecoderConfig, ModelConfig
from bt_megatron.inference.comparison import Comparison

USAGE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."
tokenizer = AutoTokenizer.from_pretrained(folder{trust})
model = AutoModelForCausalLM.from_pretrained(folder{trust})

inputs = tokenizer(["The quick brown fox"], return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=64, do_sample=True, top_p=0.9)
print(tokenizer.decode(output[0]))
```"""

BLOCK_NOTES = """Prompts may have any length. They are padded inside the model so that they end with
a whole block of {k} tokens; the result does not show it. `model(input_ids).logits` puts
as many pads in front of the text as `left_padding` in `config.json` says. With
`left_padding={pads}`, which suits models trained with random left padding, every token from
the second on has a prediction. With 0, which suits others, the tokens of the first block
have none: those entries are zero, a uniform distribution. Calls and `from_pretrained` take
another value as an argument. The code is in `modeling_block_transformer.py` and needs torch
and transformers only."""


def model_card(
    model: ModelConfig,
    info: Mapping[str, Any],
    comparison: Comparison,
    *,
    dtype: str,
    has_tokenizer: bool,
) -> str:
    """Return the text of README.md.

    Args:
        model: the model.
        info: what is known of the source, see checkpoint/weights.py.
        comparison: of the exported model with the trainer's.
        dtype: in which the weights are stored.
        has_tokenizer: whether the folder has a tokenizer.
    """
    kind = "Block Transformer (arXiv 2406.02657)" if model.is_block else "GPT-NeoX transformer"
    trust = ", trust_remote_code=True" if model.is_block else ""
    parts = [
        f"# {info.get('run') or 'Exported model'}",
        f"A {kind}, exported by bt-megatron.",
        _table("Source", _source_rows(info, dtype)),
        _table("Model", _model_rows(model)),
        "## Use",
        USAGE.format(trust=trust),
        _notes(model, has_tokenizer),
        _table("Check of this export", _check_rows(comparison)),
        "The exported folder was loaded with transformers and compared in float32 with the\n"
        "trainer's model on two sequences of random tokens.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(title: str, rows: Mapping[str, str]) -> str:
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join([f"## {title}", "", "| | |", "|---|---|", *lines])


def _source_rows(info: Mapping[str, Any], dtype: str) -> dict[str, str]:
    versions = info.get("versions") or {}
    known = {
        "checkpoint": info.get("path"),
        "step": _number(info.get("step")),
        "tokens seen in training": _number(info.get("tokens")),
        "data": info.get("data"),
        "commit of the trainer": versions.get("bt_megatron"),
        "weights stored in": dtype,
    }
    return {name: str(value) for name, value in known.items() if value is not None}


def _number(value: int | None) -> str | None:
    return None if value is None else f"{value:,}"


def _model_rows(model: ModelConfig) -> dict[str, str]:
    counts = count_parameters(model)
    rows = {
        "parameters": f"{counts.total:,}",
        "without tables": f"{counts.non_embedding:,}",
        "vocabulary": f"{model.vocab_size:,}",
    }
    if model.is_block:
        assert model.embedder is not None, "a block model has an embedder"
        assert model.token_decoder is not None, "a block model has a token decoder"
        rows["tokens per block"] = str(model.block_length)
        rows["embedder"] = f"{model.embedder.kind}, width {model.embedder.hidden_size}"
    for name in ("block_decoder", "token_decoder", "decoder"):
        stack: DecoderConfig | None = getattr(model, name)
        if stack is not None:
            rows[name.replace("_", " ")] = (
                f"{stack.num_layers} layers, width {stack.hidden_size}, "
                f"{stack.num_attention_heads} heads"
            )
    if model.token_decoder is not None:
        strategy = model.token_decoder.strategy
        length = model.token_decoder.prefix_length
        rows["token decoding"] = f"prefix of {length}" if strategy == "prefix" else strategy
    return rows


def _notes(model: ModelConfig, has_tokenizer: bool) -> str:
    notes = ""
    if model.is_block:
        notes = BLOCK_NOTES.format(k=model.block_length, pads=model.block_length - 1)
    if not has_tokenizer:
        notes += "\n\nNo tokenizer is in this folder: none was known when it was exported."
    return notes.strip()


def _check_rows(comparison: Comparison) -> dict[str, str]:
    return {
        "largest difference of a logit, same weights": f"{comparison.difference:.3g}",
        "allowed": f"{comparison.allowed:.3g}",
        "largest difference of a logit, weights before rounding": f"{comparison.rounding:.3g}",
        "same best token as before rounding": f"{comparison.agreement:.2%}",
        "largest logit": f"{comparison.largest:.3g}",
        "predicted tokens": f"{comparison.predictions:,}",
    }
