# SPDX-License-Identifier: Apache-2.0
"""Which layouts a number of processes can have, and the small runs to try them with.

Every product tp x cp x pp x dp of the number of processes, with sequence parallelism
wherever tp is more than 1, and of these

    with pp > 1         also two virtual stages each
    with dp x cp > 1    also gradients reduced and weights gathered behind the computation
    of tp alone         also without sequence parallelism
    of dp, of cp alone  also with an optimizer that is not sharded
    of pp and dp        also cut inside of each decoder

Nothing here imports torch.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from bt_megatron.config.geometry import is_t5, layer_letters
from bt_megatron.config.rules import LAYOUT, check
from bt_megatron.config.schema import (
    BatchConfig,
    DataConfig,
    DecoderConfig,
    EmbedderConfig,
    LayoutConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TokenDecoderConfig,
    TrainConfig,
)
from bt_megatron.config.stages import resolve_stages
from bt_megatron.parallel.layout import contract, format_stages

HEAD = 64
"""Width of an attention head: the fused kernels of GPUs want no less."""
VOCABULARY = 1021
"""A prime number, so that tables have to be padded for any tp."""
LAYERS = 3
"""Of each decoder: embedder, layers and head then are eight pieces for pipelines."""
ROWS = 16
"""Blocks of a sequence (vanilla: a quarter of its tokens)."""
SEQUENCES = 16
"""Of a batch at least."""
T5_LR = 1e-4
"""T5's table has deviation 1, which turns the rounding of larger steps into 3e-4 of the gradient
norm two steps later."""
LETTERS = {"b": "block", "t": "token"}


@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutCase:
    """A layout of a number of processes."""

    name: str
    """E.g. tp2-sp-dp2."""
    processes: int
    """tp x cp x pp x dp."""
    config: RunConfig
    """The run in this layout."""
    cut: str
    """What each pipeline stage holds; empty without a pipeline."""
    refusal: str = ""
    """Why the rules refuse it, if they do."""


def small_model(architecture: str, *, processes: int) -> ModelConfig:
    """Return a model that products of up to eight processes can cut.

    Args:
        architecture: block or vanilla.
        processes: most processes that will have it; of more than four, tensor parallelism needs
            eight heads.
    """
    heads = 4 if processes <= 4 else 8
    if architecture == "block":
        return block_model(width=HEAD * heads, heads=heads)
    decoder = DecoderConfig(
        num_layers=2 * LAYERS, hidden_size=HEAD * heads, num_attention_heads=heads
    )
    return ModelConfig(architecture="vanilla", vocab_size=VOCABULARY, decoder=decoder)


def block_model(*, width: int, heads: int) -> ModelConfig:
    """Return a block model of eight pieces.

    Args:
        width: of both decoders.
        heads: of their attention.
    """
    layers: dict[str, Any] = {
        "num_layers": LAYERS,
        "hidden_size": width,
        "num_attention_heads": heads,
    }
    return ModelConfig(
        vocab_size=VOCABULARY,
        embedder=EmbedderConfig(hidden_size=width // 4),
        block_decoder=DecoderConfig(**layers),
        token_decoder=TokenDecoderConfig(**layers),
    )


def without_dropout(model: ModelConfig) -> ModelConfig:
    """Return the model without dropout, which is drawn by each process on its own."""
    parts = {
        name: replace(part, dropout=0.0)
        for name in ("embedder", "token_decoder")
        if (part := getattr(model, name)) is not None
    }
    return replace(model, **parts)


def small_run(model: ModelConfig, processes: Sequence[int], *, steps: int) -> RunConfig:
    """Return a run of one process that all of these numbers of processes can share.

    Args:
        model: any model; trained without dropout.
        processes: numbers of processes.
        steps: optimizer steps.
    """
    rows = model.block_length if model.is_block else 4
    unit = math.lcm(*processes)
    return RunConfig(
        name="layouts",
        model=without_dropout(model),
        data=DataConfig(
            path="none",
            seq_length=ROWS * rows,
            random_left_padding=False,
            pad_to_block_boundary=False,
        ),
        batch=BatchConfig(global_batch_size=unit * math.ceil(SEQUENCES / unit)),
        optimizer=OptimizerConfig(lr=T5_LR if is_t5(model) else 1e-3, warmup_steps=0),
        train=TrainConfig(steps=steps, precision="fp32"),
    )


def layout_cases(run: RunConfig, processes: int) -> list[LayoutCase]:
    """Return the layouts of a number of processes, those that the rules refuse with a reason.

    Args:
        run: the run of one process.
        processes: how many.

    Raises:
        ConfigError: the run breaks rules that have nothing to do with its layout.
    """
    check(run, world_size=1)
    cases: list[LayoutCase] = []
    known: set[LayoutConfig] = set()
    for layout, suffix in _layouts(run.model, processes):
        config = replace(run, layout=layout)
        name = layout_name(layout, processes) + suffix
        refusal = next(filter(None, (rule(config, processes) for rule in LAYOUT)), None)
        if refusal is not None:
            cases.append(
                LayoutCase(name=name, processes=processes, config=config, cut="", refusal=refusal)
            )
            continue
        stages = format_stages(resolve_stages(config))
        what = replace(layout, pp_cut=stages)
        if what not in known:
            known.add(what)
            cut = stages if layout.pp > 1 else ""
            cases.append(LayoutCase(name=name, processes=processes, config=config, cut=cut))
    return cases


def layout_name(layout: LayoutConfig, processes: int) -> str:
    """Return the sizes of a layout that are more than 1, e.g. tp2-sp-pp2-vpp2-dp2."""
    parts = [
        f"tp{layout.tp}" if layout.tp > 1 else "",
        "sp" if layout.sequence_parallel else "",
        f"cp{layout.cp}" if layout.cp > 1 else "",
        f"pp{layout.pp}" if layout.pp > 1 else "",
        f"vpp{layout.vpp}" if layout.vpp > 1 else "",
        f"dp{processes // layout.replica_size}" if processes > layout.replica_size else "",
    ]
    return "-".join(filter(None, parts)) or "one"


def _layouts(model: ModelConfig, processes: int) -> Iterator[tuple[LayoutConfig, str]]:
    """Yield layouts, whether they fit or not, and what to add to the names of their sizes."""
    for tp, cp, pp in sorted(_factorisations(processes), key=_kinds):
        layout = LayoutConfig(tp=tp, sequence_parallel=tp > 1, cp=cp, pp=pp)
        dp = processes // layout.replica_size
        forms = [layout, *([replace(layout, vpp=2)] if pp > 1 else [])]
        for form in forms:
            yield form, ""
            if dp * cp > 1:
                yield replace(form, overlap_grad_reduce=True, overlap_param_gather=True), "-overlap"
        if tp == processes > 1:
            yield replace(layout, sequence_parallel=False), ""
        if processes in (dp, cp) and processes > 1:
            yield replace(layout, distributed_optimizer=False), "-plain-optimizer"
        if pp > 1 and tp == cp == 1:
            for letter, name in LETTERS.items():
                if cut := cut_inside(layer_letters(model), letter, pp):
                    yield replace(layout, pp_cut=cut), f"-cut-in-{name}-decoder"


def _factorisations(processes: int) -> list[tuple[int, int, int]]:
    """Return all (tp, cp, pp) whose product divides the number of processes."""
    sizes = [size for size in range(1, processes + 1) if processes % size == 0]
    return [
        (tp, cp, pp) for tp, cp, pp in product(sizes, repeat=3) if processes % (tp * cp * pp) == 0
    ]


def _kinds(sizes: tuple[int, int, int]) -> tuple[int, ...]:
    """Order layouts: the fewer dimensions above 1 the earlier, dp and tp before the others."""
    return (sum(size > 1 for size in sizes), *(-size for size in sizes))


def cut_inside(letters: str, letter: str, pp: int) -> str:
    """Return a layout string whose cuts all lie inside of one decoder, empty if they cannot.

    Args:
        letters: of the model, e.g. EbbbtttL.
        letter: of the decoder's layers.
        pp: stages.
    """
    first, count = letters.find(letter), letters.count(letter)
    if count < pp:
        return ""
    cuts = [0, *(first + count * stage // pp for stage in range(1, pp)), len(letters)]
    return "|".join(contract(letters[a:b]) for a, b in zip(cuts, cuts[1:], strict=False))
