# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.generate FOLDER --prompt "..."`: continue a text with an exported model.

The text appears as it is written. The folder's own code runs, through transformers, or
with --engine our engine, whose random numbers are its own.
"""

import argparse
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bt_megatron.errors import BtError, ConversionError


def generate(
    folder: Path, prompt: str, *, seed: int | None = None, **sampling: Any
) -> torch.Tensor:
    """Continue a prompt, streaming to the console.

    Args:
        folder: an exported model with its tokenizer.
        prompt: the text to continue.
        seed: of sampling; None: a new one each time.
        **sampling: as transformers' generate().

    Returns:
        [1, s] token ids, prompt included.

    Raises:
        ConversionError: the folder is not an exported model, or the prompt is empty.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer
    from transformers.utils import logging as transformers_logging

    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise ConversionError(
                f"{folder}: no {name}. Name a folder that tools.export made with a tokenizer."
            )
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True, local_files_only=True)
    inputs = tokenizer(prompt, return_tensors="pt")
    if inputs["input_ids"].shape[1] == 0:
        raise ConversionError("--prompt: it has no tokens. Give at least one word.")
    transformers_logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, local_files_only=True
    ).to(device)
    if seed is not None:
        torch.manual_seed(seed)
    ids = {name: inputs[name].to(device) for name in ("input_ids", "attention_mask")}
    return model.generate(**ids, streamer=TextStreamer(tokenizer), **sampling)


def generate_with_engine(
    folder: Path, prompt: str, *, max_new_tokens: int, seed: int | None, **sampling: Any
) -> str:
    """Continue a prompt with the engine, streaming to the console; return the new text.

    Raises:
        BtError: the engine does not run the folder, or the prompt is empty.
    """
    from bt_megatron.inference.engine.engine import Settings
    from bt_megatron.inference.engine.folder import open_folder
    from bt_megatron.inference.engine.requests import Options
    from bt_megatron.inference.engine.text import TextStream

    longest = max_new_tokens + len(prompt.encode())  # a token is one byte of text or more
    opened = open_folder(folder, Settings(max_rows=1, max_tokens=longest))
    options = Options(
        max_new_tokens=max_new_tokens,
        seed=secrets.randbits(63) if seed is None else seed,
        end_id=opened.end_id,
        **sampling,
    )
    print(prompt, end="", flush=True)  # noqa: T201
    stream = TextStream(
        opened.tokenizer,
        listen=lambda request, text: print(text, end="", flush=True),  # noqa: T201
    )
    opened.engine.submit(opened.tokenizer.encode(prompt).ids, options, stream)
    opened.engine.run()
    print()  # noqa: T201
    return stream.text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.generate", description="Continue a text with an exported model."
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="what tools.export made")
    parser.add_argument("--prompt", required=True, help="text to continue")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=1.0, help="0: always the best token")
    parser.add_argument("--top-k", type=int, default=0, help="0: all tokens")
    parser.add_argument("--top-p", type=float, default=1.0, help="1: all tokens")
    parser.add_argument("--seed", type=int, help="of sampling (default: a new one)")
    parser.add_argument("--engine", action="store_true", help="run on the engine")
    arguments = parser.parse_args(argv)
    sampling: dict[str, Any] = {"max_new_tokens": arguments.max_new_tokens, "do_sample": False}
    if arguments.temperature > 0:
        sampling |= {
            "do_sample": True,
            "temperature": arguments.temperature,
            "top_k": arguments.top_k,
            "top_p": arguments.top_p,
        }
    if arguments.engine:
        return _run_engine(arguments)
    try:
        generate(arguments.folder, arguments.prompt, seed=arguments.seed, **sampling)
    except BtError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt:
        print()  # noqa: T201
    return 0


def _run_engine(arguments: argparse.Namespace) -> int:
    try:
        generate_with_engine(
            arguments.folder,
            arguments.prompt,
            max_new_tokens=arguments.max_new_tokens,
            seed=arguments.seed,
            temperature=arguments.temperature,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
        )
    except BtError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt:
        print()  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
