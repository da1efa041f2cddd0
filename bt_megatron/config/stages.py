# SPDX-License-Identifier: Apache-2.0
"""The layout string of a run, written or balanced, as stages that fit its model."""

from bt_megatron.config.balance import Piece, balance_stages, require_pieces
from bt_megatron.config.flops import element_flops
from bt_megatron.config.geometry import is_t5, layer_letters
from bt_megatron.config.schema import ModelConfig, RunConfig
from bt_megatron.errors import LayoutError
from bt_megatron.parallel.layout import StageSlice, parse_stages, validate_stages


def resolve_stages(config: RunConfig) -> tuple[StageSlice, ...]:
    """Return what each of the pp x vpp pipeline stages holds.

    Stage i runs on pipeline rank i % pp, as its virtual stage i // pp (Megatron's
    interleaved schedule).

    `auto` is balanced by the FLOPs of each element (full attention); embedding look-ups
    cost nothing there.

    Raises:
        LayoutError: if the string is malformed, or does not fit the model, layout.pp and
            layout.vpp.
    """
    model, layout = config.model, config.layout
    text = layout.pp_cut
    if text == "auto":
        text = balance_stages(_pieces(model, config.data.seq_length), pp=layout.pp, vpp=layout.vpp)
    stages = parse_stages(text)
    letters = layer_letters(model)
    validate_stages(
        stages,
        pp=layout.pp,
        vpp=layout.vpp,
        block_layers=letters.count("b"),
        token_layers=letters.count("t"),
    )
    if is_t5(model) and not (stages[-1].has_first_token_layer and stages[-1].has_head):
        raise LayoutError(
            f"pp_cut '{text}': cross_attention needs all {letters.count('t')} token layers and "
            "the head in the last stage, because they share one table and one relative bias. "
            "Put every t into the last stage, or use pp_cut: auto."
        )
    return stages


def require_stages(config: RunConfig) -> None:
    """Check that the run has stages, without balancing them.

    Raises:
        LayoutError: as `resolve_stages`.
    """
    layout = config.layout
    if layout.pp_cut == "auto":
        pieces = _pieces(config.model, config.data.seq_length)
        require_pieces(pieces, pp=layout.pp, vpp=layout.vpp)
    else:
        resolve_stages(config)


def _pieces(model: ModelConfig, seq_length: int) -> tuple[Piece, ...]:
    """List what may be cut apart, with its cost."""
    costs = element_flops(model, seq_length=seq_length)
    pieces = tuple(Piece(*pair) for pair in zip(layer_letters(model), costs, strict=True))
    if not is_t5(model):
        return pieces
    tail = [piece for piece in pieces if piece.letters in "tL"]
    whole = Piece("".join(p.letters for p in tail), sum(p.cost for p in tail))
    return (*pieces[: -len(tail)], whole)
