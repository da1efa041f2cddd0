# SPDX-License-Identifier: Apache-2.0
"""From text to tokens and back while they are written: streaming, and strings that stop it."""

from collections.abc import Callable, Sequence

from tokenizers import Tokenizer

from bt_megatron.inference.engine.requests import Request, RequestError

UNFINISHED = "\ufffd"
"""What a tokenizer writes for bytes that are no whole character yet."""
MAX_STOP_STRINGS = 16


class TextStream:
    """Text of a request, as far as it is certain; an `on_tokens` of the engine.

    Held back are bytes that are no whole character yet, and an end that may become a stop
    string. What is decoded anew for each step is the last few tokens only.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        listen: Callable[[Request, str], None] = lambda request, text: None,
    ) -> None:
        """Start empty.

        Args:
            tokenizer: of the model.
            stop: strings that end the text; they are not part of it.
            listen: called with each piece of text, and with "" at the end.

        Raises:
            RequestError: too many stop strings, or an empty one.
        """
        if len(stop) > MAX_STOP_STRINGS or not all(stop):
            raise RequestError(
                f"stop: give at most {MAX_STOP_STRINGS} strings, none of them empty."
            )
        self.text = ""
        """All that was passed on."""
        self._tokenizer, self._stop, self._listen = tokenizer, tuple(stop), listen
        self._seen = ""
        self._first, self._next = 0, 0

    def __call__(self, request: Request) -> bool:
        """Take the request's new tokens; return whether a stop string ends it."""
        is_last = request.finish_reason is not None
        self._seen += self._decode(request.tokens, is_last=is_last)
        ends = [place for stop in self._stop if (place := self._seen.find(stop)) >= 0]
        certain = min(ends) if ends else len(self._seen)
        if not ends and not is_last:
            certain -= max((overlap(self._seen, stop) for stop in self._stop), default=0)
        piece = self._seen[len(self.text) : certain]
        if piece:
            self.text += piece
            self._listen(request, piece)
        if ends or is_last:
            self._listen(request, "")
        return bool(ends)

    def _decode(self, tokens: Sequence[int], *, is_last: bool) -> str:
        # A token's text may depend on the ones before it: decode with what was decoded last.
        known = self._tokenizer.decode(tokens[self._first : self._next])
        longer = self._tokenizer.decode(tokens[self._first :])
        if longer.endswith(UNFINISHED) and not is_last:
            return ""
        self._first, self._next = self._next, len(tokens)
        return longer[len(known) :]


def overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of a text that a stop string begins with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
