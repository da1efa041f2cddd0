# SPDX-License-Identifier: Apache-2.0
"""A table of what a data folder holds, by subset."""

from rich.table import Table

from bt_megatron.data.manifest import Manifest, SubsetCounts

_COLUMNS = ("documents", "tokens", "share", "bytes", "bytes/token")


def subset_table(manifest: Manifest) -> Table:
    """Lay out documents, tokens, bytes of text and bytes per token of each subset."""
    table = Table(title=f"vocabulary {manifest.tokenizer.vocab_size:,}, {manifest.dtype}")
    table.add_column("subset")
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for name, counts in manifest.subsets.items():
        table.add_row(name, *_cells(counts, manifest.tokens))
    table.add_section()
    total = SubsetCounts(
        documents=manifest.documents,
        tokens=manifest.tokens,
        text_bytes=sum(counts.text_bytes for counts in manifest.subsets.values()),
    )
    table.add_row("total", *_cells(total, manifest.tokens))
    return table


def _cells(counts: SubsetCounts, all_tokens: int) -> tuple[str, ...]:
    return (
        f"{counts.documents:,}",
        f"{counts.tokens:,}",
        f"{100 * counts.tokens / all_tokens:.1f}%" if all_tokens else "n/a",
        f"{counts.text_bytes:,}",
        f"{counts.text_bytes / counts.tokens:.3f}" if counts.tokens else "n/a",
    )
