# SPDX-License-Identifier: Apache-2.0
"""System samples: real figures of this machine, never waited for."""

import time
from types import SimpleNamespace

import psutil

from bt_megatron.observe.system import GIB, SystemSampler, sample_gpus, sample_host


def test_host_figures_are_plausible():
    sample = sample_host(psutil.Process())
    assert 0 < sample["system/process_memory_gib"] < sample["system/memory_total_gib"]
    assert 0 < sample["system/memory_used_gib"] <= sample["system/memory_total_gib"]
    assert sample["system/cpu_percent"] >= 0


def test_the_sampler_samples_in_the_background():
    sampler = SystemSampler(interval_s=0.01)
    assert sampler.latest() == {}
    sampler.start()
    deadline = time.monotonic() + 20
    while not sampler.latest() and time.monotonic() < deadline:
        time.sleep(0.01)
    sampler.close()
    assert "system/cpu_percent" in sampler.latest()


class FakeNvmlError(Exception):
    pass


def fake_nvml(*, power_fails: bool) -> SimpleNamespace:
    """NVIDIA's library, as a machine with one GPU answers."""

    def power(device: int) -> int:
        if power_fails:
            raise FakeNvmlError
        return 350_500

    return SimpleNamespace(
        NVMLError=FakeNvmlError,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=lambda device: SimpleNamespace(used=3 * GIB),
        nvmlDeviceGetUtilizationRates=lambda device: SimpleNamespace(gpu=97),
        nvmlDeviceGetPowerUsage=power,
        nvmlDeviceGetTemperature=lambda device, sensor: 61,
    )


def test_gpu_figures_have_units():
    assert sample_gpus(fake_nvml(power_fails=False)) == {
        "system/gpu_0_memory_used_gib": 3.0,
        "system/gpu_0_percent": 97.0,
        "system/gpu_0_power_w": 350.5,
        "system/gpu_0_temperature_c": 61.0,
    }


def test_a_figure_that_the_driver_refuses_is_left_out():
    sample = sample_gpus(fake_nvml(power_fails=True))
    assert "system/gpu_0_power_w" not in sample
    assert sample["system/gpu_0_percent"] == 97.0
