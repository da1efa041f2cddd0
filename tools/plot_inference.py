# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.plot_inference`: throughput of generation and parameters, as in the paper.

One panel for prompts that are long and one for continuations that are; each point is a model
at its best batch on one GPU, from docs/benchmarks/inference.json.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bt_megatron.config.load import load_model
from bt_megatron.config.params import count_parameters
from bt_megatron.errors import BtError, DataError

SOURCE = Path("docs/benchmarks/inference.json")
OUT = Path("docs/images/inference-pareto.png")
CONFIGS = Path(__file__).parents[1] / "configs" / "model"
TITLES = {"prefill-heavy": "2,048 tokens in, 128 out", "decode-heavy": "128 tokens in, 2,048 out"}
FAMILIES = {"block": "tab:blue", "vanilla": "tab:orange"}
Points = dict[tuple[str, str, str], list[tuple[float, float, str]]]


def read_points(content: Mapping[str, Any]) -> Points:
    """Return (tokens/s, parameters, model) by load, family and precision."""
    points: Points = {}
    for row in content["rows"]:
        _, model, load, precision = row["case"].split("/")
        config = CONFIGS / f"{model}.yaml"
        if row["metric"] != "tokens_per_s" or load not in TITLES or not config.is_file():
            continue
        size = count_parameters(load_model(config)).total
        key = (load, model.split("-")[0], precision)
        points.setdefault(key, []).append((row["value"], size, model))
    return {key: sorted(found) for key, found in points.items()}


def draw(points: Points, title: str, out: Path) -> None:
    """Draw the two panels into a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(TITLES), figsize=(11, 4.2), sharey=True)
    for axis, (load, text) in zip(axes, TITLES.items(), strict=True):
        for (its_load, family, precision), found in points.items():
            if its_load != load:
                continue
            speeds, sizes, names = zip(*found, strict=True)
            style = "o-" if precision == "bf16" else "s--"
            axis.plot(speeds, sizes, style, color=FAMILIES[family], label=f"{family}, {precision}")
            for speed, size, name in found:
                axis.annotate(name, (speed, size), textcoords="offset points", xytext=(4, 5))
        axis.set(title=text, xscale="log", yscale="log", xlabel="generated tokens/s")
        axis.grid(visible=True, which="both", alpha=0.3)
    axes[0].set_ylabel("parameters")
    axes[0].legend()
    figure.suptitle(title)
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.plot_inference", description="Plot what bench_inference measured."
    )
    parser.add_argument("--json", type=Path, default=SOURCE, metavar="FILE")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE.png")
    arguments = parser.parse_args(argv)
    try:
        content = json.loads(arguments.json.read_bytes())
        draw(read_points(content), content["machine"], arguments.out)
    except (OSError, ValueError, KeyError) as error:
        problem = DataError(f"{arguments.json}: not a benchmark file ({error!r}). Name another.")
        print(f"error: {problem}", file=sys.stderr)  # noqa: T201
        return problem.exit_code
    except BtError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    print(arguments.out)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
