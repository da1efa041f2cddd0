# SPDX-License-Identifier: Apache-2.0
"""Save where the documents of a run lie in its packed streams, once, for all ranks to map.

Both sides of the split of each data folder are packed as the trainer would, so
the trainer finds its indices by their fingerprints and starts without reading
the shards' own. Run again, the command checks what is there against its
checksums and makes only what is missing.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from bt_megatron.config.schema import RunConfig
from bt_megatron.data.packed_index import find_damage, index_folder
from bt_megatron.data.sources import open_sources
from bt_megatron.data.split import Split


@dataclass(frozen=True, kw_only=True, slots=True)
class Indexed:
    """What became of one index."""

    folder: Path
    subset: str
    split: str
    documents: int
    samples: int
    made: bool
    """False: it was there and is whole."""
    seconds: float


def index_run(config: RunConfig, *, on_stage: Callable[[str], None]) -> list[Indexed]:
    """Make or check the indices of a run.

    Args:
        config: of the run.
        on_stage: called with a line for people before each index.

    Returns:
        One entry for each data folder and side of the split.

    Raises:
        DataError: a folder cannot be read, or holds no whole sample.
    """
    block_length = config.model.block_length if config.model.is_block else 1
    done = []
    for source in open_sources(config):
        for split in get_args(Split):
            if split == "validation" and config.data.validation_fraction == 0:
                continue
            on_stage(f"{source.config.path}: {split}, {source.corpus.num_documents:,} documents")
            started = time.monotonic()
            dataset = source.subset(block_length=block_length, split=split).dataset
            if dataset.is_mapped and find_damage(source.indices, dataset.fingerprint):
                on_stage(f"{source.config.path}: {split}, the index is damaged and made again")
                shutil.rmtree(index_folder(source.indices, dataset.fingerprint))
                dataset = source.subset(block_length=block_length, split=split).dataset
            folder = dataset.save(source.indices)
            done.append(
                Indexed(
                    folder=folder,
                    subset=source.name,
                    split=split,
                    documents=dataset.num_documents,
                    samples=len(dataset),
                    made=not dataset.is_mapped,
                    seconds=time.monotonic() - started,
                )
            )
    return done
