"""Step a: what this machine has."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import sfp
from sfp.clip.text_bank import default_cache_dir
from sfp.verification.findings import Finding, impossible, judged, passed
from sfp.verification.session import Session
from sfp.verification.timing import machine

_PACKAGES = (
    "torch", "torchvision", "open_clip_torch", "timm", "transformers", "numpy", "mmengine",
    "mmcv", "mmcv-lite", "mmsegmentation", "onedl-mmsegmentation", "opencv-python",
)  # fmt: skip
_ROOM = 3.0  # GiB that weights, text vectors and results may need
_MEMORY = 4.0  # GiB that a ViT-B/16 in float32 and a picture's scores need


def run(session: Session) -> None:
    session.check("a", "versions", _versions)
    session.check("a", "processor", _processor)
    session.check("a", "GPU", lambda: gpu(session))
    session.check("a", "memory and disk", lambda: _room(session))


def _versions() -> Finding:
    found = {"python": platform.python_version(), "sfp": sfp.__version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    main = ("python", "torch", "open_clip_torch", "sfp")
    return passed(", ".join(f"{name} {found[name]}" for name in main if name in found), **found)


def _processor() -> Finding:
    name, threads = machine(torch.device("cpu")), torch.get_num_threads()
    cores = os.cpu_count()
    words = f"{name}, {cores} cores, {threads} threads, {platform.system()}"
    capability = torch.backends.cpu.get_cpu_capability()
    return passed(words, processor=name, cores=cores, threads=threads, instructions=capability)


def gpu(session: Session) -> Finding:
    """What CUDA has."""
    if not torch.cuda.is_available():
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else ""
        return impossible(
            f"no GPU that torch can use{f' ({built})' if built else ''}: nothing below says how one"
            " behaves"
        )
    found = []
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        about = torch.cuda.get_device_properties(number)
        found.append(
            dict(
                name=about.name,
                capability=f"{about.major}.{about.minor}",
                free_gib=round(free / 2**30, 1),
                total_gib=round(total / 2**30, 1),
            )
        )
    first = found[0]
    tf32 = dict(
        matmul=torch.backends.cuda.matmul.allow_tf32, convolution=torch.backends.cudnn.allow_tf32
    )
    words = (
        f"{len(found)} x {first['name']}, {first['free_gib']} of {first['total_gib']} GiB free,"
        f" CUDA {torch.version.cuda}; one of them is used, {session.device}"
    )
    return passed(
        words, gpus=found, cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version(),
        driver=_driver(), tf32=tf32, bf16=torch.cuda.is_bf16_supported(),
    )  # fmt: skip


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n")[0].strip()


def _room(session: Session) -> Finding:
    places = {"out": session.given.out, "cache": default_cache_dir()}
    free = {name: round(_free(path) / 2**30, 1) for name, path in places.items()}
    memory = _free_memory()
    least = min(free.values())
    words = f"{memory} GiB of memory, {least} GiB of disk free"
    good = least >= _ROOM and (memory is None or memory >= _MEMORY)
    if not good:
        words += f"; {_MEMORY:g} and {_ROOM:g} GiB may be needed: free some"
    return judged(good, words, memory_gib=memory, disk_gib=free)


def _free(path: Path) -> int:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _free_memory() -> float | None:
    """GiB of free memory; None where the system doesn't say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = next(line for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
    return round(int(found.split()[1]) / 2**20, 1)
