# SPDX-License-Identifier: Apache-2.0
"""Text to token shards: one shard per input, then the manifest.

A folder grows: inputs given later are added to it, shards that are already
whole are reused, and the manifest, written last, lists all of them by name. All
shards of a folder come from one tokenizer.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from bt_megatron.data.index import token_dtype
from bt_megatron.data.manifest import (
    FILE_NAME,
    Manifest,
    ShardRecord,
    TokenizerRecord,
    load_manifest,
    save_manifest,
)
from bt_megatron.errors import DataError
from data_prep import tokenizer as text_tokenizer
from data_prep.engines import FAST, REFERENCE
from data_prep.folder_lock import HeldLock, lock_folder
from data_prep.inputs import name_shards, total_size
from data_prep.parity import EngineDiffersError
from data_prep.pool import ShardJob, share_cores, write_shards
from data_prep.problems import strict_message
from data_prep.progress import ByteProgress
from data_prep.report import describe_problems, say
from data_prep.shard import Position, SavedShard, can_reuse, is_whole, saved_shards
from data_prep.tokenizer import TextTokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizeOptions:
    """What the tokenize command was asked to do."""

    inputs: list[Path]
    """Files in The Pile's layout, or `-` alone."""
    tokenizer: Path
    """A tokenizer.json."""
    out: Path
    """The data folder."""
    workers: int = 1
    """Cores to use, one input each at a time."""
    strict: bool = False
    """Stop at the first problem of an input."""
    eos_token: str = text_tokenizer.DEFAULT_EOS
    """The token that ends a document."""
    engine: str = text_tokenizer.AUTOMATIC
    """One of `data_prep.tokenizer.ENGINES`."""
    distrusted: frozenset[str] = frozenset()
    """Engines that turned out to differ from `tokenizers`: their shards are made anew."""


class _Means(NamedTuple):
    """What a run works with."""

    processes: int
    lock: HeldLock


def tokenize(options: TokenizeOptions) -> Manifest:
    """Make or extend a data folder; running it again does only what is missing.

    Raises:
        DataError: an input or the tokenizer cannot be used, the folder holds
            shards of another tokenizer or other inputs of the same name, an
            input has a problem and strict is set, or no document is left.
    """
    sources = name_shards(options.inputs)
    processes = share_cores(options.workers, inputs=len(sources))
    tokenizer = TextTokenizer(
        options.tokenizer, eos_token=options.eos_token, engine=options.engine, warn=say
    )
    options.out.mkdir(parents=True, exist_ok=True)
    with lock_folder(options.out) as lock:
        try:
            return _extend(options, sources, tokenizer, _Means(processes, lock))
        except EngineDiffersError as error:
            say(
                f"WARNING {options.out}: {error.engine} differs from tokenizers: {error.what}. "
                "Every shard that it made is made anew with tokenizers, some forty times slower."
            )
            distrusted = options.distrusted | {error.engine}
            options = replace(options, engine=REFERENCE, distrusted=distrusted)
            tokenizer = TextTokenizer(
                options.tokenizer, eos_token=options.eos_token, engine=REFERENCE
            )
            return _extend(options, sources, tokenizer, _Means(processes, lock))


def _extend(
    options: TokenizeOptions, sources: dict[str, Path], tokenizer: TextTokenizer, means: _Means
) -> Manifest:
    """Make what a locked folder lacks."""
    out = options.out
    saved = _records_in(out, tokenizer)
    reused = [
        name
        for name in sources
        if name in saved
        and saved[name].engine not in options.distrusted
        and can_reuse(saved[name], sources[name], out)
    ]
    kept = {name: saved[name] for name in saved if name in reused or name not in sources}
    _check_kept(kept, options, again=reused)
    missing = {name: path for name, path in sources.items() if name not in reused}
    say(
        f"{out}: {len(missing)} inputs to tokenize with {tokenizer.engine.name}, "
        f"{len(reused)} reused as they are"
    )
    if others := sorted(kept.keys() - set(reused)):
        say(f"{out}: also holds {len(others)} shards of other inputs: {', '.join(others)}")
    _place_tokenizer(tokenizer, out)
    made = _write_missing(options, missing, tokenizer, means)
    shards = sorted(
        [*(record.shard for record in kept.values()), *made], key=lambda shard: shard.name
    )
    manifest = Manifest(
        tokenizer=tokenizer.record,
        dtype=token_dtype(tokenizer.record.vocab_size),
        shards=tuple(shards),
    )
    _finish(manifest, out, given=[shard for shard in shards if shard.name in sources])
    return manifest


def _records_in(out: Path, tokenizer: TextTokenizer) -> dict[str, SavedShard]:
    """Read what the folder holds; refuse what another tokenizer made."""
    saved = {record.shard.name: record for record in saved_shards(out)}
    if (out / FILE_NAME).exists():
        manifest = load_manifest(out)
        for shard in manifest.shards:
            unknown = SavedShard(shard, manifest.tokenizer, mtime_ns=0, engine="", compared=0)
            saved.setdefault(shard.name, unknown)
    for name, record in saved.items():
        if record.tokenizer != tokenizer.record:
            raise DataError(
                f"{out}: shard {name} - was made with {_brief(record.tokenizer)}, not with "
                f"{tokenizer.path}, {_brief(tokenizer.record)} - use another --out, or "
                f"--tokenizer {out / text_tokenizer.FILE_NAME} and its --eos-token"
            )
    present = out / text_tokenizer.FILE_NAME
    if present.exists() and present.read_bytes() != tokenizer.content:
        raise DataError(
            f"{present} - is another tokenizer than {tokenizer.path} - use another --out, or "
            "remove it"
        )
    return saved


def _brief(record: TokenizerRecord) -> str:
    return f"tokenizer {record.sha256[:12]} (vocabulary {record.vocab_size}, EOS {record.eos_id})"


def _check_kept(kept: dict[str, SavedShard], options: TokenizeOptions, *, again: list[str]) -> None:
    """Refuse shards that are damaged, distrusted, or that strict would not have made."""
    for name, saved in kept.items():
        shard = saved.shard
        whole = name in again or is_whole(options.out, shard)
        if not whole or saved.engine in options.distrusted:
            fault = "is damaged or gone" if not whole else f"was made by {saved.engine}, see above"
            raise DataError(
                f"{options.out / name}.bin - {fault} - give its input {shard.source.name} again"
            )
        if options.strict and name in again:
            for kind, record in shard.problems.items():
                raise DataError(strict_message(kind, record.examples[0]))


def _place_tokenizer(tokenizer: TextTokenizer, out: Path) -> None:
    target = out / text_tokenizer.FILE_NAME
    if not target.exists():
        temporary = target.with_name(target.name + ".tmp")
        temporary.write_bytes(tokenizer.content)
        temporary.replace(target)


def _write_missing(
    options: TokenizeOptions, missing: dict[str, Path], tokenizer: TextTokenizer, means: _Means
) -> list[ShardRecord]:
    if not missing:
        return []
    job = ShardJob(
        tokenizer=options.out / text_tokenizer.FILE_NAME,
        eos_token=options.eos_token,
        folder=options.out,
        strict=options.strict,
        lock=means.lock,
        engine=REFERENCE if tokenizer.engine.name.startswith(REFERENCE) else FAST,
    )
    with ByteProgress("tokenize", total_bytes=total_size(list(missing.values()))) as progress:

        def show(positions: list[Position]) -> None:
            total = Position(*(sum(column) for column in zip(*positions, strict=True)))
            note = f"{total.documents:,} documents, {total.problems:,} problems"
            progress.advance_to(total.bytes_read, note)

        return write_shards(
            job, missing, tokenizer=tokenizer, processes=means.processes, on_positions=show
        )


def _finish(manifest: Manifest, out: Path, *, given: list[ShardRecord]) -> None:
    """Report on the inputs that were given, and write the manifest."""
    for line in describe_problems([shard.problems for shard in given]):
        say(line)
    if not manifest.documents:
        names = ", ".join(shard.source.name for shard in given)
        raise DataError(
            f"{names} - no document among {sum(shard.source.size for shard in given)} bytes of "
            'input - lines must be JSON objects with a "text"'
        )
    save_manifest(manifest, out)
    say(
        f"{out / FILE_NAME}: {manifest.documents:,} documents, {manifest.tokens:,} tokens in "
        f"{len(manifest.shards)} shards"
    )
