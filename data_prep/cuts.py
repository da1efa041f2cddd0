# SPDX-License-Identifier: Apache-2.0
r"""Where a text may be cut so that its parts have the ids of the whole.

A cut is made behind a printable ASCII character other than a space and in front of a space or
newline, or between an ASCII letter and a digit. For byte-level BPE with GPT-2's splitting this is
exact, because

- GPT-2's pattern `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+` has
  whitespace only at the start of a piece or alone, and a piece is of one class of characters,
  so a piece ends at every such place; it looks ahead at whitespace only from within whitespace,
  and never behind; BPE merges within a piece;
- NFC leaves ASCII characters alone and composes nothing across the place in front of one;
- no added token holds such a place, or asks for what stands beside it.

`can_cut` checks that a tokenizer.json is of this kind; others get their texts whole.
"""

import re
from collections.abc import Iterator
from typing import Any

import orjson

PART_CHARACTERS = 1 << 20

_PLACE = re.compile(r"(?<=[!-~])(?=[ \n])|(?<=[A-Za-z])(?=[0-9])")
_WINDOW = 1 << 12


class NoPlaceToCutError(Exception):
    """A long text has no place where it may be cut."""


def can_cut(content: bytes) -> bool:
    """Say whether texts may be cut before they are given to a tokenizer.

    Args:
        content: of its tokenizer.json.
    """
    body: dict[str, Any] = orjson.loads(content)
    model = body.get("model") or {}
    splitter = body.get("pre_tokenizer") or {}
    normalizer = body.get("normalizer") or {"type": None}
    return (
        model.get("type") == "BPE"
        and not model.get("dropout")
        and not model.get("continuing_subword_prefix")
        and not model.get("end_of_word_suffix")
        and normalizer["type"] in (None, "NFC")
        and splitter.get("type") == "ByteLevel"
        and splitter.get("use_regex", True) is True
        and splitter.get("add_prefix_space") is False
        and all(_stands_alone(token) for token in body.get("added_tokens") or [])
    )


def cut(pieces: Iterator[str], *, size: int = PART_CHARACTERS) -> Iterator[str]:
    """Cut a text, given in pieces of any size, into parts of about `size` characters.

    Raises:
        NoPlaceToCutError: four times as many characters have no place to cut.
    """
    rest = ""
    for piece in pieces:
        rest += piece
        while len(rest) > size:
            place = _last_place(rest, size)
            if place is None and len(rest) > 4 * size:
                raise NoPlaceToCutError
            if place is None:
                break
            yield rest[:place]
            rest = rest[place:]
    if rest:
        yield rest


def _last_place(text: str, size: int) -> int | None:
    """Find a place near `size`: the last one before it, else the first one after it."""
    for end in range(size, 0, -_WINDOW):
        # One character more, for the pattern to look ahead at.
        places = [m.start() for m in _PLACE.finditer(text, max(end - _WINDOW, 1), end + 1)]
        if places:
            return places[-1]
    later = _PLACE.search(text, size)
    return later.start() if later else None


def _stands_alone(token: dict[str, Any]) -> bool:
    sides = ("lstrip", "rstrip", "single_word")
    return not any(token.get(side) for side in sides) and not _PLACE.search(token["content"])
