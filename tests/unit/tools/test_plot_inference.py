# SPDX-License-Identifier: Apache-2.0
"""The plot shows each family's models by throughput, and refuses what is no benchmark file."""

import json

from tools.plot_inference import main, read_points


def row(case, value, metric="tokens_per_s"):
    return {"case": case, "metric": metric, "value": value, "unit": "", "detail": {}}


CONTENT = {
    "machine": "1x GPU",
    "rows": [
        row("generate/block-420m/decode-heavy/bf16", 4e5),
        row("generate/block-1.2b/decode-heavy/bf16", 1.5e5),
        row("generate/block-1.2b/decode-heavy/fp8", 2e5),
        row("generate/block-1.2b/decode-heavy/bf16", 9e9, "roofline_tokens_per_s"),
        row("generate/vanilla-410m/prefill-heavy/bf16", 2e3),
        row("generate/block-1.2b/batch-1/bf16", 1e3),
    ],
}


def test_points_by_load_family_and_precision():
    points = read_points(CONTENT)
    assert points.keys() == {
        ("decode-heavy", "block", "bf16"),
        ("decode-heavy", "block", "fp8"),
        ("prefill-heavy", "vanilla", "bf16"),
    }
    slow, fast = points["decode-heavy", "block", "bf16"]
    assert slow == (1.5e5, 1_448_800_256, "block-1.2b")
    assert fast == (4e5, 420_313_088, "block-420m")


def test_a_picture_is_written(tmp_path):
    source, out = tmp_path / "in.json", tmp_path / "images" / "out.png"
    source.write_text(json.dumps(CONTENT))
    assert main(["--json", str(source), "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")


def test_a_file_that_is_no_benchmark(tmp_path, capsys):
    source = tmp_path / "in.json"
    source.write_text("{}")
    assert main(["--json", str(source)]) == 4
    assert "not a benchmark file" in capsys.readouterr().err
