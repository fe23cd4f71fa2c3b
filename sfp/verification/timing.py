"""How long calls take beside each other, and how much memory they need."""

from __future__ import annotations

import ctypes
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def in_rounds(
    calls: dict[str, Callable[[], Any]], rounds: int, device: torch.device, warm: bool = True
) -> dict[str, list[float]]:
    """Seconds of each call in each round.

    All calls of a round follow each other, so that a slow minute hits them alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(0 if warm else 1, rounds + 1):
        for name, call in calls.items():
            wait(device)
            started = time.perf_counter()
            call()
            wait(device)
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spread(seconds: list[float], plain: list[float]) -> dict[str, float]:
    """Median seconds, and the ratio to the plain forward round by round.

    Median, least and largest.
    """
    ratios = [own / other for own, other in zip(seconds, plain, strict=True)]
    return {
        "seconds": statistics.median(seconds),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def peak_memory(call: Callable[[], Any], device: torch.device) -> float | None:
    """MiB above what is held before.

    The allocator's on a GPU, the process's on a Linux CPU; None elsewhere.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        held = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - held) / 2**20
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back, so that it counts again
        Path("/proc/self/clear_refs").write_text("5")  # the process's peak starts anew
        held = resident("VmRSS")
        call()
        return resident("VmHWM") - held
    except (OSError, AttributeError):
        return None


def resident(key: str) -> float:
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)
    )
    return int(line.split()[1]) / 1024


def machine(device: torch.device) -> str:
    """The processor's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.partition(":")[2].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.machine()
