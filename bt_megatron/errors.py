# SPDX-License-Identifier: Apache-2.0
"""Errors that a user, a file or a machine can cause.

Every message says where (dotted key, file, or step and rank), what (both
numbers) and what to type instead. Mistakes of our own are `assert`s.
The exit codes differ by class so that a launcher can tell a configuration
error, which must not be retried, from a failure that may pass.
"""


class BtError(Exception):
    """Base of all errors that are shown to the user without a traceback."""

    exit_code = 1


class ConfigError(BtError):
    """A configuration that cannot be meant: unknown key, wrong type, broken rule."""

    exit_code = 2


class LayoutError(BtError):
    """A parallel layout that does not fit the model or the number of processes."""

    exit_code = 3


class DataError(BtError):
    """Text or token shards that are missing, damaged, or do not fit the model."""

    exit_code = 4


class CheckpointError(BtError):
    """A checkpoint that is missing, damaged, or belongs to another model."""

    exit_code = 5


class ConversionError(BtError):
    """Weights that cannot be converted exactly to or from another format."""

    exit_code = 6


class TrainingError(BtError):
    """A run that cannot go on: the loss or the gradients are not finite."""

    exit_code = 7


class RankError(BtError):
    """A process of the run that has died or hangs, or cannot be reached."""

    exit_code = 8


class DivergenceError(BtError):
    """A run that diverges: too many batches had to be left out."""

    exit_code = 9


class BusyError(BtError):
    """A run folder in which another process is training, perhaps one that is about to end."""

    exit_code = 10


class LaunchError(BtError):
    """A job that Slurm refuses, or that cannot be submitted."""

    exit_code = 11
