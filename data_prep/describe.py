# SPDX-License-Identifier: Apache-2.0
"""What a data folder holds, by subset: a table, and a plot of it."""

from pathlib import Path

from rich.table import Table
from rich.text import Text

from bt_megatron.data.manifest import Manifest, SubsetCounts

# `meta.pile_set_name` in The Pile, arXiv 2101.00027, table 1, in its order.
PILE_SUBSETS = (
    "Pile-CC",
    "PubMed Central",
    "Books3",
    "OpenWebText2",
    "ArXiv",
    "Github",
    "FreeLaw",
    "StackExchange",
    "USPTO Backgrounds",
    "PubMed Abstracts",
    "Gutenberg (PG-19)",
    "OpenSubtitles",
    "Wikipedia (en)",
    "DM Mathematics",
    "Ubuntu IRC",
    "BookCorpus2",
    "EuroParl",
    "HackerNews",
    "YoutubeSubtitles",
    "PhilPapers",
    "NIH ExPorter",
    "Enron Emails",
)
_COLUMNS = ("documents", "tokens", "share", "bytes", "bytes/token")


def subset_table(manifest: Manifest) -> Table:
    """Lay out documents, tokens, bytes of text and bytes per token of each subset."""
    table = Table(title=f"vocabulary {manifest.tokenizer.vocab_size:,}, {manifest.dtype}")
    table.add_column("subset")
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for name, counts in rows(manifest):
        table.add_row(Text(name), *_cells(counts, manifest.tokens))
    table.add_section()
    total = SubsetCounts(
        documents=manifest.documents,
        tokens=manifest.tokens,
        text_bytes=sum(counts.text_bytes for counts in manifest.subsets.values()),
    )
    table.add_row("total", *_cells(total, manifest.tokens))
    return table


def rows(manifest: Manifest) -> list[tuple[str, SubsetCounts]]:
    """List the subsets by name; with one of The Pile's, all 22 in its order, then any others."""
    found = manifest.subsets
    if not found.keys() & set(PILE_SUBSETS):
        return list(found.items())
    nothing = SubsetCounts(documents=0, tokens=0, text_bytes=0)
    others = [name for name in found if name not in PILE_SUBSETS]
    return [(name, found.get(name, nothing)) for name in (*PILE_SUBSETS, *others)]


def plot_subsets(manifest: Manifest, path: Path) -> None:
    """Draw tokens and bytes per token of each subset beside each other, into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # late: takes most of a second
    from matplotlib.figure import Figure

    names = [name for name, _ in rows(manifest)][::-1]
    counts = dict(rows(manifest))
    figure = Figure(figsize=(9, 1.6 + 0.3 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    tokens = left.barh(names, [counts[name].tokens for name in names], color="tab:blue")
    left.bar_label(tokens, [f"{counts[name].tokens:,}" for name in names], padding=3, fontsize=8)
    left.set_xlabel("tokens")
    left.margins(x=0.35)
    widths = [_bytes_per_token(counts[name]) or 0.0 for name in names]
    bars = right.barh(names, widths, color="tab:orange")
    right.bar_label(bars, [f"{width:.2f}" if width else "" for width in widths], padding=3)
    right.set_xlabel("bytes of text per token")
    right.margins(x=0.15)
    figure.suptitle(
        f"{manifest.documents:,} documents, {manifest.tokens:,} tokens, vocabulary "
        f"{manifest.tokenizer.vocab_size:,}",
        fontsize=10,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _bytes_per_token(counts: SubsetCounts) -> float | None:
    return counts.text_bytes / counts.tokens if counts.tokens else None


def _cells(counts: SubsetCounts, all_tokens: int) -> tuple[str, ...]:
    return (
        f"{counts.documents:,}",
        f"{counts.tokens:,}",
        f"{100 * counts.tokens / all_tokens:.1f}%" if all_tokens else "n/a",
        f"{counts.text_bytes:,}",
        f"{width:.3f}" if (width := _bytes_per_token(counts)) else "n/a",
    )
