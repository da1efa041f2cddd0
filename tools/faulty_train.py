# SPDX-License-Identifier: Apache-2.0
"""`python -m bt_megatron train`, spoiled: what tools/bench_faults starts as each rank.

    python -m tools.faulty_train FOLDER ARGUMENTS...

FOLDER/plan.json says which steps have a loss that is not finite, and which a spike. A file
FOLDER/hang-RANK or FOLDER/nan-RANK lets that rank hang at its next batch, or compute one loss
wrongly; it is removed when that happens.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from bt_megatron.training import command

SPIKE = 40.0
"""Times the loss."""


def main() -> int:
    """Train and return the exit code."""
    folder, arguments = Path(sys.argv[1]), sys.argv[2:]
    original = command._train

    def spoiled(*positional: Any, **named: Any) -> int:
        _spoil(folder)
        return original(*positional, **named)

    command._train = spoiled
    return command.main_train(arguments)


def _spoil(folder: Path) -> None:
    """Replace parts of the training by those with faults."""
    from bt_megatron.parallel import cpu_backend

    cpu_backend.install()
    from bt_megatron.data.prefetch import PrefetchedBatches
    from bt_megatron.training import step as training_step

    rank = os.environ["RANK"]
    plan = json.loads((folder / "plan.json").read_text())
    factors = dict.fromkeys(plan["nan"], float("nan")) | dict.fromkeys(plan["spike"], SPIKE)
    current = {"always": 1.0, "once": 1.0, "hangs": 0.0}
    take, sum_loss = training_step.TrainingStep.train, training_step._sum_loss
    next_batch = PrefetchedBatches.__next__

    def next_or_hang(self: Any) -> Any:
        current["always"] = factors.get(self.step + 1, 1.0)
        current["once"] = float("nan") if _taken(folder / f"nan-{rank}") else 1.0
        while current["hangs"] or _taken(folder / f"hang-{rank}"):
            current["hangs"] = 1.0
            time.sleep(1)
        return next_batch(self)

    def train(self: Any, batches: Any, **named: Any) -> Any:
        result = take(self, batches, **named)
        current["once"] = 1.0
        return result

    def spoiled_sum(losses: Any, **named: Any) -> Any:
        return sum_loss(losses * current["always"] * current["once"], **named)

    PrefetchedBatches.__next__ = next_or_hang  # type: ignore[method-assign]
    training_step.TrainingStep.train = train  # type: ignore[method-assign]
    training_step._sum_loss = spoiled_sum


def _taken(trigger: Path) -> bool:
    """Whether a fault was asked for; it happens once."""
    try:
        trigger.unlink()
    except FileNotFoundError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
