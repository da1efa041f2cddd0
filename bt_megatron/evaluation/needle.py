# SPDX-License-Identifier: Apache-2.0
"""Needle in a haystack: is a sentence found again, wherever in the context it stands?

The paper's test (arXiv 2406.02657, section 4 and appendix): a text of the context's length, a
sentence with a number of seven digits at some depth, and a question at the end, in two forms:
`question` asks, `verbatim` begins the sentence anew. A prompt counts if the number is in the
20 tokens that follow. A small model never gets there, so the loss of the number's own tokens
is measured too, and the loss without the needle beside it: what the model gains by having read it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from bt_megatron.errors import DataError
from bt_megatron.evaluation.likelihood import LanguageModel, Request
from bt_megatron.evaluation.measurement import Counter, Measurement, OnProgress

CITIES = (
    *("Amsterdam", "Athens", "Bangkok", "Barcelona", "Berlin", "Boston", "Cairo", "Chicago"),
    *("Dublin", "Havana", "Helsinki", "Istanbul", "Jakarta", "Lagos", "Lima", "Lisbon"),
    *("London", "Madrid", "Manila", "Mumbai", "Nairobi", "Oslo", "Paris", "Prague"),
    *("Rome", "Seoul", "Sydney", "Tokyo", "Vienna", "Warsaw"),
)
NEEDLE = "\nThe special magic {city} number is: {number}.\n"
QUESTIONS = {
    "question": (
        "\n</context>\n\nWhat is the special magic {city} number?\n\n"
        "Here is the magic number from the context:"
    ),
    "verbatim": "\n</context>\n\nThe special magic {city} number is:",
}
OPENING = "<context>\n"
DEPTHS = tuple(range(0, 101, 10))
JITTER = 10
"""Tokens that a needle is moved by at most, but for the ends."""
NEW_TOKENS = 20
DIGITS = 7
SEED = 2024


@dataclass(frozen=True, slots=True)
class _Case:
    depth: int
    number: str
    prompt: list[int]
    without: list[int]
    """The prompt with more haystack in the needle's place."""
    answer: list[int]


def measure_needle(
    model: LanguageModel,
    tokenizer: Tokenizer,
    haystacks: Sequence[Sequence[int]],
    *,
    form: str,
    samples: int,
    on_progress: OnProgress,
) -> Measurement:
    """Hide needles at each depth and ask for them.

    Args:
        model: the model.
        tokenizer: of the model.
        haystacks: tokens of documents to hide needles in.
        form: `question` or `verbatim`.
        samples: needles per depth.
        on_progress: is told of progress.

    Raises:
        DataError: no document is as long as the context, or the context has no room.
    """
    cases = list(_cases(model, _encoder(tokenizer), haystacks, form=form, samples=samples))
    report = Counter(3 * len(cases), on_progress)
    scored = [Request(case.prompt, case.answer) for case in cases]
    scored += [Request(case.without, case.answer) for case in cases]
    losses = [-score.log_likelihood / len(score.is_best) for score in model.score(scored, report)]
    prompts = [case.prompt for case in cases]
    written = model.generate(prompts, max_new_tokens=NEW_TOKENS, on_done=report)
    found = [case.number in tokenizer.decode(new) for case, new in zip(cases, written, strict=True)]
    columns = {
        "accuracy": np.array(found, dtype=np.float64),
        "answer_loss": np.array(losses[: len(cases)]),
        "answer_loss_without": np.array(losses[len(cases) :]),
    }
    depths = np.array([case.depth for case in cases])
    return Measurement(
        name=f"needle/{form}",
        metrics={name: float(column.mean()) for name, column in columns.items()},
        detail={
            "samples_per_depth": samples,
            "prompt_tokens": max(map(len, prompts)),
            "depths": list(DEPTHS),
            **{
                name: [float(column[depths == depth].mean()) for depth in DEPTHS]
                for name, column in columns.items()
            },
        },
    )


def _encoder(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def _cases(
    model: LanguageModel,
    encode: Callable[[str], list[int]],
    haystacks: Sequence[Sequence[int]],
    *,
    form: str,
    samples: int,
) -> Iterator[_Case]:
    generator = np.random.default_rng(SEED)
    opening = encode(OPENING)
    long = [hay for hay in haystacks if len(hay) >= model.max_length]
    if not long:
        raise DataError(
            f"no document has {model.max_length} tokens to hide a needle in. Pass --held-out with "
            "longer documents."
        )
    for depth in DEPTHS:
        for _ in range(samples):
            city = CITIES[generator.integers(len(CITIES))]
            number = str(generator.integers(10 ** (DIGITS - 1), 10**DIGITS))
            needle = encode(NEEDLE.format(city=city, number=number))
            question = encode(QUESTIONS[form].format(city=city))
            answer = encode(f" {number}")
            room = model.max_length - NEW_TOKENS - len(opening) - len(question)
            if room <= 2 * len(needle):
                raise DataError(
                    f"the model reads {model.max_length} tokens, and a needle with its question "
                    f"takes {model.max_length - room + len(needle)}. Leave out needle for it."
                )
            hay = list(long[generator.integers(len(long))])
            hay = hay[(begin := generator.integers(len(hay) - room + 1)) : begin + room]
            place = _place(depth, room - len(needle), generator)
            hidden = [*hay[:place], *needle, *hay[place : room - len(needle)]]
            yield _Case(
                depth,
                number,
                [*opening, *hidden, *question],
                [*opening, *hay, *question],
                answer,
            )


def _place(depth: int, length: int, generator: np.random.Generator) -> int:
    """Return the token of the haystack that a needle stands before."""
    place = round(length * depth / 100)
    if 0 < depth < 100:
        place += int(generator.integers(-JITTER, JITTER + 1))
    return min(max(place, 0), length)
