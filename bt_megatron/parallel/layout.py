# SPDX-License-Identifier: Apache-2.0
"""Layout strings: which pipeline stage holds which slice of the model.

    E  embedder (vanilla: the token embedding)     b  one block-decoder layer
    t  one token-decoder layer (vanilla: a layer)  L  head and loss
    |  the cut between two stages                  b*12  twelve times b

`Eb*12|t*12L` is a Block Transformer of 12 + 12 layers on two stages. What has no
letter of its own lives with its neighbour: the block decoder's final norm with
the last `b`, the expansion and the token embedding with the first `t`, the
token decoder's final norm with the last `t`.

Pure arithmetic: no torch, no communication, no configuration.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

from bt_megatron.errors import LayoutError

MAX_LAYERS = 10_000
"""More layers than this in one string is taken for a slip of the keyboard."""

_ITEM = re.compile(r"([EbtL])(?:\*([0-9]+))?")
_ORDER = re.compile(r"Eb*t+L")
_EXAMPLE = "Write for example Eb*12|t*12L."


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSlice:
    """What one pipeline stage holds."""

    index: int
    """Position of the stage in the pipeline, from 0."""
    has_embedder: bool
    """Whether the stage starts from token ids."""
    first_block_layer: int
    """Number of the first block-decoder layer here; without any, that of the next one."""
    block_layers: int
    """Block-decoder layers here."""
    first_token_layer: int
    """Number of the first token-decoder layer here; without any, that of the next one."""
    token_layers: int
    """Token-decoder layers here."""
    has_last_block_layer: bool
    """Whether the block decoder ends here; its final norm is then here too."""
    has_last_token_layer: bool
    """Whether the token decoder ends here; its final norm is then here too."""
    has_head: bool
    """Whether logits and loss are computed here."""

    @property
    def has_first_token_layer(self) -> bool:
        """Whether the token decoder starts here, with expansion and token embedding."""
        return self.token_layers > 0 and self.first_token_layer == 0

    @property
    def letters(self) -> str:
        """The slice with one letter for each element, e.g. Ebb."""
        embedder, head = "E" * self.has_embedder, "L" * self.has_head
        return f"{embedder}{'b' * self.block_layers}{'t' * self.token_layers}{head}"


def parse_stages(text: str) -> tuple[StageSlice, ...]:
    """Read a layout string.

    Args:
        text: Stages from first to last, e.g. `Ebbbb|ttttL` or `Eb*4|t*4L`; spaces
            are ignored.

    Returns:
        One slice for each stage.

    Raises:
        LayoutError: for an unknown letter, an empty stage, or elements that are
            missing, repeated or out of order.
    """
    stages = [_expand(part, number, text) for number, part in enumerate(text.split("|"), start=1)]
    whole = "".join(stages)
    if not _ORDER.fullmatch(whole):
        raise LayoutError(f"pp_cut '{text}': {_order_fault(whole)}. {_EXAMPLE}")
    return _slices(stages)


def format_stages(stages: Sequence[StageSlice]) -> str:
    """Write slices as a layout string, the inverse of `parse_stages`."""
    return "|".join(contract(stage.letters) for stage in stages)


def contract(letters: str) -> str:
    """Write runs of more than four equal letters as `b*12`."""
    runs = ((letter, len(list(run))) for letter, run in groupby(letters))
    return "".join(f"{letter}*{n}" if n > 4 else letter * n for letter, n in runs)


def validate_stages(
    stages: Sequence[StageSlice], *, pp: int, vpp: int = 1, block_layers: int, token_layers: int
) -> None:
    """Check that a layout fits the pipeline and the model.

    Args:
        stages: What `parse_stages` returned.
        pp: Pipeline-parallel size of the run.
        vpp: Virtual stages of each process.
        block_layers: Block-decoder layers of the model, 0 for a vanilla model.
        token_layers: Token-decoder layers of the model, or its layers if vanilla.

    Raises:
        LayoutError: naming every number that does not fit.
    """
    faults = []
    if len(stages) != pp * vpp:
        faults.append(
            f"it has {len(stages)} stages but layout.pp ({pp}) x layout.vpp ({vpp}) is {pp * vpp}"
        )
    for letter, name, wanted, found in (
        ("b", "block-decoder", block_layers, sum(stage.block_layers for stage in stages)),
        ("t", "token-decoder", token_layers, sum(stage.token_layers for stage in stages)),
    ):
        if found != wanted:
            faults.append(f"it has {found} '{letter}' but the model has {wanted} {name} layers")
    if faults:
        raise LayoutError(
            f"pp_cut '{format_stages(stages)}': {'; '.join(faults)}. "
            "Write a string that fits, or pp_cut: auto."
        )


def sum_by_stage(values: Sequence[int], stages: Sequence[StageSlice]) -> tuple[int, ...]:
    """Add up one value for each element of the model, stage by stage.

    Args:
        values: One for each letter of the model, in the order of the layout string.
        stages: The layout.
    """
    ends = list(accumulate((len(stage.letters) for stage in stages), initial=0))
    assert ends[-1] == len(values), "a layout is validated against its model before"
    return tuple(sum(values[a:b]) for a, b in zip(ends, ends[1:], strict=False))


def _expand(part: str, number: int, text: str) -> str:
    """Turn one stage, e.g. `Eb*2`, into letters, `Ebb`."""
    rest = re.sub(r"\s+", "", part)
    if not rest:
        raise LayoutError(
            f"pp_cut '{text}': stage {number} is empty. Each stage needs at least one element; "
            "remove a '|' and lower layout.pp by one."
        )
    letters = ""
    while rest:
        match = _ITEM.match(rest)
        if match is None:
            raise LayoutError(
                f"pp_cut '{text}': stage {number} has '{rest[0]}', which is none of E b t L and "
                f"no repetition such as b*12. {_EXAMPLE}"
            )
        count = int(match[2] or 1)
        if not 1 <= count <= MAX_LAYERS:
            raise LayoutError(
                f"pp_cut '{text}': '{match[0]}' repeats {count} times. "
                f"Use a number from 1 to {MAX_LAYERS}."
            )
        letters += match[1] * count
        rest = rest[match.end() :]
    return letters


def _order_fault(whole: str) -> str:
    """Say what is wrong with a sequence of elements."""
    for letter, name in (("E", "embedder"), ("L", "head and loss")):
        if whole.count(letter) != 1:
            return f"'{letter}' ({name}) occurs {whole.count(letter)} times, it must occur once"
    if "t" not in whole:
        return "there is no 't', at least one token-decoder layer is needed"
    return f"the order is '{contract(whole)}', it must be E, then every b, then every t, then L"


def _slices(stages: Sequence[str]) -> tuple[StageSlice, ...]:
    """Number the layers of expanded stages."""
    totals = {letter: "".join(stages).count(letter) for letter in "bt"}
    seen = {"b": 0, "t": 0}
    slices = []
    for index, letters in enumerate(stages):
        here = {letter: letters.count(letter) for letter in "bt"}
        ends = {letter: 0 < here[letter] == totals[letter] - seen[letter] for letter in "bt"}
        slices.append(
            StageSlice(
                index=index,
                has_embedder="E" in letters,
                first_block_layer=seen["b"],
                block_layers=here["b"],
                first_token_layer=seen["t"],
                token_layers=here["t"],
                has_last_block_layer=ends["b"],
                has_last_token_layer=ends["t"],
                has_head="L" in letters,
            )
        )
        seen = {letter: seen[letter] + here[letter] for letter in "bt"}
    return tuple(slices)
