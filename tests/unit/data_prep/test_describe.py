# SPDX-License-Identifier: Apache-2.0
"""The table of subsets."""

from rich.console import Console

from bt_megatron.data.manifest import (
    Manifest,
    ShardRecord,
    SourceRecord,
    SubsetCounts,
    TokenizerRecord,
)
from data_prep.describe import PILE_SUBSETS, plot_subsets, subset_table


def manifest_of(subsets):
    shard = ShardRecord(
        name="a",
        documents=sum(counts.documents for counts in subsets.values()),
        tokens=sum(counts.tokens for counts in subsets.values()),
        text_bytes=sum(counts.text_bytes for counts in subsets.values()),
        bin_sha256="",
        idx_sha256="",
        source=SourceRecord(name="a.jsonl", size=0, sha256=""),
        subsets=subsets,
        problems={},
    )
    tokenizer = TokenizerRecord(file="tokenizer.json", sha256="", vocab_size=4096, eos_id=0)
    return Manifest(tokenizer=tokenizer, dtype="uint16", shards=(shard,))


def rows_of(manifest):
    console = Console(width=100)
    with console.capture() as capture:
        console.print(subset_table(manifest))
    lines = capture.get().split("\n")
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]


def test_rows_are_subsets_by_name_and_the_total():
    subsets = {
        "Wiki [old]": SubsetCounts(documents=1234, tokens=3000, text_bytes=12_000),
        "Arguments": SubsetCounts(documents=1, tokens=1000, text_bytes=2500),
    }
    assert rows_of(manifest_of(subsets)) == [
        ["Arguments", "1", "1,000", "25.0%", "2,500", "2.500"],
        ["Wiki [old]", "1,234", "3,000", "75.0%", "12,000", "4.000"],
        ["total", "1,235", "4,000", "100.0%", "14,500", "3.625"],
    ]


def test_all_subsets_of_the_pile_are_listed_in_its_order_with_others_behind():
    counts = SubsetCounts(documents=1, tokens=10, text_bytes=30)
    rows = rows_of(manifest_of({"Enron Emails": counts, "ArXiv": counts, "Mine": counts}))
    assert [row[0] for row in rows] == [*PILE_SUBSETS, "Mine", "total"]
    assert len(set(PILE_SUBSETS)) == 22
    assert rows[4] == ["ArXiv", "1", "10", "33.3%", "30", "3.000"]
    assert rows[0] == ["Pile-CC", "0", "0", "0.0%", "0", "n/a"]


def test_plot_is_the_same_for_the_same_counts(tmp_path):
    counts = SubsetCounts(documents=1, tokens=10, text_bytes=30)
    for name in ("a", "b"):
        plot_subsets(manifest_of({"ArXiv": counts}), tmp_path / name / "p.png")
    assert (tmp_path / "a/p.png").read_bytes() == (tmp_path / "b/p.png").read_bytes()


def test_nothing_is_divided_by_zero():
    assert rows_of(manifest_of({})) == [["total", "0", "0", "n/a", "0", "n/a"]]
