# SPDX-License-Identifier: Apache-2.0
"""A Transformer Engine that is missing, broken or without a GPU does no harm."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

from bt_megatron.parallel import transformer_engine_check

BROKEN = {
    "other cudnn": ("OSError", "undefined symbol: cudnnFoo"),
    "no library": ("RuntimeError", "libcudnn shared object not found."),
    "two versions": ("AssertionError", "package version mismatch"),
    "no extension": ("ImportError", "cannot import name x"),
}


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Pretend that there is a CUDA device; forget what other tests found out and hid."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in transformer_engine_check.PACKAGES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    transformer_engine_check.find_problem.cache_clear()
    yield monkeypatch
    transformer_engine_check.find_problem.cache_clear()
    for name in transformer_engine_check.PACKAGES:
        sys.modules.pop(name, None)


def install(folder: Path, *, on_import: str) -> None:
    package = folder / "transformer_engine" / "pytorch"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("import transformer_engine.common\n")
    (package.parent / "common.py").write_text("")
    (package / "__init__.py").write_text(on_import)


@pytest.mark.parametrize(("kind", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_installation_is_named_and_hidden(
    kind: str, message: str, with_gpu: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(tmp_path, on_import=f"raise {kind}('{message}\\nmore')\n")
    with_gpu.syspath_prepend(tmp_path)
    problem = transformer_engine_check.find_problem()
    assert problem == (
        f"transformer-engine is installed and cannot be imported ({kind}: {message})"
    )
    transformer_engine_check.hide_if_broken()
    for name in ("transformer_engine", "transformer_engine.common", "transformer_engine.pytorch"):
        with pytest.raises(ImportError):
            importlib.import_module(name)


def test_working_installation_is_left_alone(with_gpu: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(tmp_path, on_import="works = True\n")
    with_gpu.syspath_prepend(tmp_path)
    transformer_engine_check.hide_if_broken()
    assert transformer_engine_check.find_problem() is None
    assert sys.modules["transformer_engine.pytorch"].works
    for name in [name for name in sys.modules if name.startswith("transformer_engine.")]:
        del sys.modules[name]


def test_without_a_gpu_it_is_not_imported(with_gpu: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(tmp_path, on_import="raise RuntimeError('imported')\n")
    with_gpu.syspath_prepend(tmp_path)
    with_gpu.setattr(torch.cuda, "is_available", lambda: False)
    assert transformer_engine_check.find_problem() == "no CUDA device is visible"
    assert "transformer_engine" not in sys.modules


def test_without_the_package(with_gpu: pytest.MonkeyPatch) -> None:
    with_gpu.setattr(importlib.util, "find_spec", lambda name: None)
    assert transformer_engine_check.find_problem() == "transformer-engine is not installed"
