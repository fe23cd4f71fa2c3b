"""Several ranks: what they are told, and what they do when one dies or hangs."""

from __future__ import annotations

import os
import signal
import socket
import time

import pytest
import torch
from conftest import ROOT
from forked import Program

from sfp.commands import benchmark
from sfp.commands.evaluate import start_ranks
from sfp.errors import SFPError

_SLURM = dict(SLURM_PROCID="1", SLURM_NTASKS="2", SLURM_LOCALID="1", MASTER_ADDR="127.0.0.1")

RANK = """
import os, sys, time
from sfp.evaluation import ranks
from sfp.commands.evaluate import start_ranks
ranks.BEAT, ranks.SILENCE = 0.2, 1.5
watch = start_ranks("pytorch")
print("met", flush=True)
rank = int(os.environ["RANK"])
if rank == 1:
    time.sleep(float(sys.argv[1]))
try:
    ranks.wait_for_all()
except RuntimeError as error:
    sys.exit(f"ended: {error}".splitlines()[0])
watch.leave()
print("done", flush=True)
"""


def two_ranks(slow: float) -> list[Program]:
    """Two processes that have met; the second takes so long for its share."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in ("0", "1"):
        own = dict(RANK=rank, WORLD_SIZE="2", LOCAL_RANK=rank, MASTER_ADDR="127.0.0.1")
        own |= dict(MASTER_PORT=str(port), PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
        processes.append(Program("-c", RANK, slow, cwd=ROOT, environment={**os.environ, **own}))
    ends = time.monotonic() + 60
    while any(process.written()[0] != "met\n" for process in processes):
        assert time.monotonic() < ends, [process.written() for process in processes]
        time.sleep(0.01)
    return processes


# over 5 s: one waits for the other for 3 s, after the one time of their imports
def test_a_slow_rank_is_waited_for_longer_than_silence():
    processes = two_ranks(slow=3.0)
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, "met\ndone\n"), err[-2000:]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
def test_the_others_end_soon_with_a_sentence(how):
    first, second = two_ranks(slow=60.0)
    begun = time.monotonic()
    try:
        second.send_signal(how)
        out, err = first.communicate(timeout=60)
    finally:
        second.kill()
        second.communicate()
    assert time.monotonic() - begun < 15
    assert out == "met\n" and first.returncode != 0
    words = "monitoredBarrier" if how == signal.SIGKILL else "Rank 1 of 2 has given no sign"
    assert words in err.strip().splitlines()[-1]


@pytest.fixture
def gpus(monkeypatch):
    def pretend(count: int, **environment: str) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        for name in ("CUDA_VISIBLE_DEVICES", "SLURM_GPUS_PER_TASK", "SLURM_GPU_BIND", *_SLURM):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return pretend


@pytest.mark.parametrize(
    ("visible", "device", "expected"),
    [
        (None, "1", "1"),
        ("4,5", "0", "4"),
        ("4,5", "1", "5"),
        ("GPU-8f1a, GPU-77c0", "1", "GPU-77c0"),
        ("MIG-1,MIG-2", "0", "MIG-1"),
        ("4,5", "cpu", ""),
        (None, "cpu", ""),
    ],
)
def test_a_worker_sees_the_gpu_that_its_parent_counts(visible, device, expected, gpus):
    gpus(2, **({} if visible is None else dict(CUDA_VISIBLE_DEVICES=visible)))
    assert benchmark.visible_devices(device) == expected


@pytest.mark.parametrize("shown", [1, 2])
def test_more_ranks_than_gpus_is_a_sentence(shown, gpus):
    gpus(shown, **{**_SLURM, "SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "3"})
    with pytest.raises(SFPError, match=rf"Rank 3 of 4 is number 3 of its host, and sees {shown} G"):
        start_ranks("slurm")


def test_one_gpu_a_task_under_slurm_is_its_own(gpus, monkeypatch):
    """Slurm shows each task a single GPU: number 0 to it, whatever SLURM_LOCALID says."""
    gpus(1, SLURM_GPUS_PER_TASK="1", **_SLURM)
    chosen = []

    def choose(device: int) -> None:
        chosen.append(device)
        raise KeyboardInterrupt  # before anything is started

    monkeypatch.setattr(torch.cuda, "set_device", choose)
    with pytest.raises(KeyboardInterrupt):
        start_ranks("slurm")
    assert chosen == [0]
