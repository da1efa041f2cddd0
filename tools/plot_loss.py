# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.plot_loss RUN_DIR...`: draw the loss curve of one run or several.

One run is drawn into its own loss.png, with the lines of its baselines.json if
there is one; several are drawn over each other into --out.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bt_megatron.errors import BtError, ConfigError
from bt_megatron.observe.plot import plot_loss
from bt_megatron.observe.run_folder import open_run_folder


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.plot_loss", description="Draw the loss curves of runs."
    )
    parser.add_argument("run_dirs", nargs="+", metavar="RUN_DIR", help="<runs_dir>/<name>")
    parser.add_argument("--out", type=Path, help="PNG file (default for one run: its loss.png)")
    parser.add_argument("--title", help="title of the plot (default: the names of the runs)")
    arguments = parser.parse_args(argv)
    try:
        folders = [open_run_folder(path) for path in arguments.run_dirs]
        if arguments.out is None and len(folders) > 1:
            raise ConfigError(f"--out: {len(folders)} runs share no folder. Pass --out FILE.png.")
        output = arguments.out or folders[0].loss_plot
        plot_loss(folders, output, title=arguments.title)
    except BtError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    print(output)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
