# SPDX-License-Identifier: Apache-2.0
"""Makes Megatron-Core run where there is no CUDA: there, "cuda" means "cpu".

Megatron-Core 0.19 names CUDA in literals all over its schedules, optimizer and
random-state code. `install()` replaces those names before the first model is
built; where CUDA exists it does nothing. No other file knows about it.

Four kinds of names need a replacement:
  - device arguments of tensor factories (`torch.zeros(..., device="cuda")`),
  - tensor methods that move or name devices (`.cuda()`, `.to("cuda")`, `.type()`),
  - `torch.cuda` functions (current device, streams, random state, memory),
  - the random-state tracker, which stores CUDA generator states.
Factories are wrapped one by one because a TorchFunctionMode is not active when
autograd recomputes activations. Megatron's import-time `torch.compile` is
skipped on CPU: it costs 5 s and compiles C++ at the first call.
"""

import contextlib
import functools
import importlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.utils._device

from bt_megatron.parallel import transformer_engine_check

CPU = torch.device("cpu")

FACTORIES = (
    *("arange", "as_tensor", "empty", "empty_like", "eye", "full", "full_like", "linspace"),
    *("ones", "ones_like", "rand", "rand_like", "randint", "randn", "randn_like", "randperm"),
    *("tensor", "zeros", "zeros_like"),
)


GPU_PACKAGES = ("transformer_engine", "transformer_engine_torch", "apex", "amp_C")
"""What Megatron-Core prefers over torch; its guards take "it can be imported" for "it works"."""


class NullStream:
    """Stands in for a CUDA stream or event: everything is already done."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        """Accept what a CUDA stream accepts."""

    def __enter__(self) -> "NullStream":
        return self

    def __exit__(self, *_exc: object) -> None:
        return None

    def record(self, *_args: Any) -> None:
        """Do nothing."""

    def synchronize(self) -> None:
        """Do nothing."""

    def wait(self, *_args: Any) -> None:
        """Do nothing."""

    def wait_event(self, *_args: Any) -> None:
        """Do nothing."""

    def wait_stream(self, *_args: Any) -> None:
        """Do nothing."""


def names_cuda(device: Any) -> bool:
    """Return whether a device argument means a CUDA device."""
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, str) and device.split(":")[0] == "cuda"


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def wrapped(*args: Any, **kwargs: Any) -> torch.Tensor:
        if names_cuda(kwargs.get("device")):
            kwargs["device"] = CPU
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        return factory(*args, **kwargs)

    return wrapped


def _hide_gpu_packages() -> None:
    # A machine may have them and no visible GPU: their kernels would then fail at the first step.
    modules: dict[str, Any] = sys.modules
    for name in GPU_PACKAGES:
        modules.setdefault(name, None)  # importing it raises ImportError


def _patch_factories() -> None:
    # `with torch.device("meta")` knows factories by identity, from a list made at its first use:
    # made after the patch, it would hold the wrappers and send nothing to the device any more
    # (transformers then loads models with garbage in their rotary tables).
    torch.utils._device._device_constructors()
    for name in FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))


def _patch_tensor_methods() -> None:
    original_to, original_type = torch.Tensor.to, torch.Tensor.type

    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        args = tuple(CPU if names_cuda(arg) else arg for arg in args)
        if names_cuda(kwargs.get("device")):
            kwargs["device"] = CPU
        return original_to(self, *args, **kwargs)

    def type_(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs:
            return original_type(self, *args, **kwargs)
        # Megatron's optimizers compare the name with "torch.cuda.FloatTensor".
        return original_type(self).replace("torch.", "torch.cuda.")

    torch.Tensor.to = to  # type: ignore[method-assign, assignment]
    torch.Tensor.type = type_  # type: ignore[method-assign, assignment]
    torch.Tensor.cuda = lambda self, *_args, **_kwargs: self  # type: ignore[method-assign]
    torch.Tensor.pin_memory = lambda self, *_args, **_kwargs: self  # type: ignore[method-assign]


def _patch_cuda_functions() -> None:
    # Each name gets a function of its own: torch._dynamo rejects aliases.
    cuda: Any = torch.cuda
    cuda.current_device = lambda: CPU
    cuda.synchronize = lambda *_args: None
    cuda.empty_cache = lambda: None
    cuda.set_device = lambda _device: None
    cuda.current_stream = lambda *_args: NullStream()
    cuda.stream = lambda _stream: contextlib.nullcontext()
    cuda.Stream = NullStream
    cuda.Event = NullStream
    generator = torch.default_generator
    cuda.manual_seed = lambda seed: generator.manual_seed(seed)
    cuda.get_rng_state = lambda *_args, **_kwargs: generator.get_state()
    cuda.random.get_rng_state = lambda *_args, **_kwargs: generator.get_state()
    cuda.set_rng_state = lambda state, *_args: generator.set_state(state)
    cuda.random.set_rng_state = lambda state, *_args: generator.set_state(state)


def _patch_random_tracker(random_module: Any) -> None:
    default_name = random_module._MODEL_PARALLEL_RNG_TRACKER_NAME

    class CpuRngTracker(random_module.CudaRNGStatesTracker):  # type: ignore[misc]
        """Megatron's tracker over the CPU generator, without its check of that generator."""

        @contextlib.contextmanager
        def fork(self, name: str = default_name) -> Iterator[None]:
            """Draw from the named state inside the context, from the global one after it."""
            outer = torch.get_rng_state()
            torch.set_rng_state(self.states_[name])
            try:
                yield
            finally:
                self.states_[name] = torch.get_rng_state()
                torch.set_rng_state(outer)

    random_module.CudaRNGStatesTracker = CpuRngTracker
    random_module._get_cuda_rng_state = lambda *_args, **_kwargs: torch.get_rng_state()
    random_module._set_cuda_rng_state = lambda state, *_args, **_kwargs: torch.set_rng_state(state)


@functools.cache
def install() -> None:
    """Import Megatron-Core, made to run on CPU where there is no CUDA.

    Where there is CUDA, a Transformer Engine that does not work there is hidden.

    Must be called before anything else imports `megatron.core`. Idempotent.
    """
    if torch.cuda.is_available():
        transformer_engine_check.hide_if_broken()
        return
    # "No CUDA runtime is found", "Transformer Engine is not installed": so it is meant here.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    _hide_gpu_packages()
    original_compile = torch.compile
    torch.compile = lambda fn=None, **_: fn if fn is not None else (lambda inner: inner)  # type: ignore[assignment]
    try:
        with warnings.catch_warnings(action="ignore"):
            # Before the patches below: torch._dynamo indexes torch.cuda when it is imported.
            random_module = importlib.import_module("megatron.core.tensor_parallel.random")
            for name in ("optimizer", "distributed", "pipeline_parallel", "dist_checkpointing"):
                importlib.import_module(f"megatron.core.{name}")
    finally:
        torch.compile = original_compile
    _patch_factories()
    _patch_tensor_methods()
    _patch_cuda_functions()
    _patch_random_tracker(random_module)
