# SPDX-License-Identifier: Apache-2.0
"""Small exported folders, each written once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.small_export import write_small_export


@pytest.fixture(scope="session", autouse=True)
def _own_module_cache(tmp_path_factory):
    import transformers.dynamic_module_utils as modules

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modules, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield


@pytest.fixture(scope="session")
def small_export(tmp_path_factory) -> Callable[..., Path]:
    """Return a function from a model's name and padding to its folder."""
    folders: dict[tuple[str, bool], Path] = {}

    def export(name="lookup_prefix_b4_p2", *, padded=True):
        if (name, padded) not in folders:
            folder = tmp_path_factory.mktemp("export") / "model"
            folders[name, padded] = write_small_export(folder, name, random_left_padding=padded)
        return folders[name, padded]

    return export
