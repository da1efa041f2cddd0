# SPDX-License-Identifier: Apache-2.0
"""Rules about where the data come from, how they are packed and mixed."""

from bt_megatron.config.schema import RunConfig


def data_come_from_one_place(config: RunConfig, world_size: int) -> str | None:
    """A run reads one data folder, or mixes several."""
    path, mixture = config.data.path, config.data.mixture
    if path is None and not mixture:
        return "data.path is not set. Use data.path=FOLDER, or name folders in data.mixture."
    if path is not None and mixture:
        return (
            f"data.path ({path}) and data.mixture ({', '.join(mixture)}) are both set. Use "
            "data.path=null, or data.mixture.<name>.path for this folder too."
        )
    if mixture and config.data.drop is not None:
        return (
            f"data.drop ({config.data.drop}) is a list of one data folder. Use "
            "data.mixture.<name>.drop for the folder that it is of."
        )
    return None


def mixture_weights_are_positive(config: RunConfig, world_size: int) -> str | None:
    """A subset that is not to be read is left out."""
    faults = [
        f"data.mixture.{name}.{key} ({value}) must be greater than 0"
        for name, subset in config.data.mixture.items()
        for key, value in (("weight", subset.weight), ("max_epochs", subset.max_epochs))
        if value is not None and value <= 0
    ]
    return "; ".join(faults) + ", or leave the subset out." if faults else None


def without_padding(config: RunConfig) -> str | None:
    """Return what to type so that samples are not padded; None: they are not."""
    names = ("random_left_padding", "pad_to_block_boundary")
    settings = [f"data.{name}=false" for name in names if getattr(config.data, name)]
    return f"Use {', '.join(settings)}." if settings else None


def rows_are_not_padded(config: RunConfig, world_size: int) -> str | None:
    """Rows that were packed before have no room for pads."""
    if config.data.packing != "rows":
        return None
    remedy = without_padding(config)
    return remedy and f"data.packing is rows, which are packed already. {remedy}"
