# SPDX-License-Identifier: Apache-2.0
"""Samples of the machine that rank 0 runs on, taken in the background.

They are written into the same records as the metrics of training and reach
MLflow through metrics.jsonl, so an unreachable server loses none of them.
"""

import threading
from types import ModuleType

import psutil

GIB = 2**30


class SystemSampler:
    """A thread that looks at processor, memory, network and GPUs now and then."""

    def __init__(self, *, interval_s: float = 10.0) -> None:
        """Prepare; nothing is sampled before `start`."""
        self._interval_s = interval_s
        self._latest: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system-sampler", daemon=True)

    def start(self) -> None:
        """Start to sample."""
        self._thread.start()

    def latest(self) -> dict[str, float]:
        """Return the newest sample by metric name; empty before the first. Never waits."""
        return dict(self._latest)

    def close(self) -> None:
        """Stop sampling; a driver that does not answer is not waited for."""
        self._stop.set()
        self._thread.join(timeout=1.0)

    def _run(self) -> None:
        """Replace the sample until asked to stop."""
        process, nvml = psutil.Process(), _open_nvml()
        psutil.cpu_percent()  # the first call only starts its interval
        while not self._stop.is_set():
            self._latest = sample_host(process) | (sample_gpus(nvml) if nvml else {})
            self._stop.wait(self._interval_s)


def sample_host(process: psutil.Process) -> dict[str, float]:
    """Return the use of processor, memory and network of this machine."""
    memory, network = psutil.virtual_memory(), psutil.net_io_counters()
    sample = {
        "system/cpu_percent": psutil.cpu_percent(),
        "system/memory_used_gib": (memory.total - memory.available) / GIB,
        "system/memory_total_gib": memory.total / GIB,
        "system/process_memory_gib": process.memory_info().rss / GIB,
    }
    if network is not None:
        sample["system/network_sent_gib"] = network.bytes_sent / GIB
        sample["system/network_received_gib"] = network.bytes_recv / GIB
    return sample


def sample_gpus(nvml: ModuleType) -> dict[str, float]:
    """Return use, memory, power and temperature of every GPU of this machine."""
    sample: dict[str, float] = {}
    try:
        for index in range(nvml.nvmlDeviceGetCount()):
            device = nvml.nvmlDeviceGetHandleByIndex(index)
            name = f"system/gpu_{index}"
            memory = nvml.nvmlDeviceGetMemoryInfo(device)
            sample[f"{name}_memory_used_gib"] = memory.used / GIB
            sample[f"{name}_percent"] = float(nvml.nvmlDeviceGetUtilizationRates(device).gpu)
            sample[f"{name}_power_w"] = nvml.nvmlDeviceGetPowerUsage(device) / 1000
            sample[f"{name}_temperature_c"] = float(nvml.nvmlDeviceGetTemperature(device, 0))
    except nvml.NVMLError:
        pass  # a figure that the driver does not give (MIG, a lost GPU) is left out
    return sample


def gpu_names() -> list[str]:
    """Return the names of this machine's GPUs, as the driver gives them; none without one."""
    nvml = _open_nvml()
    if nvml is None:
        return []
    try:
        count = nvml.nvmlDeviceGetCount()
        return [nvml.nvmlDeviceGetName(nvml.nvmlDeviceGetHandleByIndex(i)) for i in range(count)]
    except nvml.NVMLError:
        return []


def _open_nvml() -> ModuleType | None:
    """Return NVIDIA's management library, or None without its bindings or a driver."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    library: ModuleType = pynvml
    return library
