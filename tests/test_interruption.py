"""Runs that are killed and continued, and runs on several ranks, give bit for bit what one whole
run gives.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import ROOT
from forked import Program

from sfp.datasets import toyland

TEST = str(ROOT / "tools/test.py")
SCENES = 7
EXACT = (
    "mIoU",
    "aAcc",
    "mAcc",
    "mIoU_present",
    "IoU_per_class",
    "images",
    "dataset_fingerprint",
    "config_sha256",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("interruption")
    toyland.write_split(root / "data/toyland", "val", SCENES)
    return root


def start(
    folder: Path,
    work: str,
    *arguments: str,
    launcher: tuple[str, ...] = (),
    options: Sequence[str] = (),
) -> Program | subprocess.Popen:
    """Start an evaluation; by a launcher, such as ``python``, in an interpreter of its own."""
    command = [TEST, str(ROOT / "configs/cfg_toyland.py"), "--work-dir", work, *arguments]
    command += [
        "--cfg-options",
        f"test_dataloader.dataset.scenes={SCENES}",
        "model.method=ClearCLIP",
        *options,
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "SFP_DATA": str(folder / "data"),
    }
    if not launcher:
        return Program(*command, cwd=folder, environment=environment)
    return subprocess.Popen(
        [*launcher, *command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a shell's background jobs ignore it
    )


def finish(process: Program | subprocess.Popen, code: int = 0) -> str:
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, out[-1500:] + err[-2500:]
    return out + err


def result(folder: Path, work: str) -> dict:
    found = json.loads((folder / work / "results.json").read_text())
    return {key: found[key] for key in EXACT}


@pytest.fixture(scope="module")
def reference(folder):
    finish(start(folder, "whole"))
    assert not (folder / "whole/counts").exists()
    return result(folder, "whole")


def counted(folder: Path, work: str) -> int:
    return sum(
        file.read_bytes().count(b"\n") for file in (folder / work / "counts").glob("rank*.jsonl")
    )


# over 5 s: a whole run and four that are killed or end, after the one time of their imports
def test_three_kills_and_the_same_command_again(folder, reference):
    randomly = random.Random(7)
    for kill in range(3):
        process = start(folder, "killed")
        before = counted(folder, "killed")
        while process.poll() is None and counted(folder, "killed") < min(before + 1, SCENES - 1):
            time.sleep(0.01)
        time.sleep(randomly.uniform(0, 0.15))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert not (folder / "killed/results.json").exists(), f"kill {kill} came too late"
    done = counted(folder, "killed")
    assert f"continuing: {done} of {SCENES} images are done" in finish(start(folder, "killed"))
    assert result(folder, "killed") == reference


@pytest.mark.slow
def test_a_changed_config_is_refused_and_fresh_starts_again(folder, reference):
    (folder / "changed/counts").mkdir(parents=True)
    (folder / "changed/counts/run.json").write_text('{"config": "another"}')
    assert "another config" in finish(start(folder, "changed"), code=2)
    finish(start(folder, "changed", "--fresh"))
    assert result(folder, "changed") == reference


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.slow
def test_slurms_variables_start_ranks_too(folder, reference, monkeypatch):
    """Two processes as srun starts them."""
    for name, value in dict(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port(), SLURM_NTASKS="2", SLURM_LOCALID="0"
    ).items():
        monkeypatch.setenv(name, value)
    processes = []
    for rank in ("0", "1"):
        monkeypatch.setenv("SLURM_PROCID", rank)
        processes.append(start(folder, "slurm", "--launcher", "slurm"))
    for process in processes:
        finish(process)
    assert result(folder, "slurm") == reference


@pytest.mark.parametrize("launcher", ["slurm"])
def test_a_launcher_that_did_not_start_it(launcher, folder):
    assert f"--launcher {launcher} needs" in finish(
        start(folder, "none", "--launcher", launcher), code=2
    )


def test_ranks_equal_one(folder, reference, monkeypatch):
    """3 ranks share 7 images as 3, 2, 2. They get torchrun's variables."""
    variables = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port(), WORLD_SIZE="3")
    processes = []
    for rank in ("0", "1", "2"):
        for name, value in {**variables, "RANK": rank, "LOCAL_RANK": rank}.items():
            monkeypatch.setenv(name, value)
        processes.append(start(folder, "ranks3", "--launcher", "pytorch"))
    for process in processes:
        finish(process)
    assert result(folder, "ranks3") == reference


@pytest.mark.slow  # torchrun starts interpreters of its own, 15 s each
def test_ranks_of_torchrun_equal_one(folder, reference):
    torchrun = (
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--master_addr=127.0.0.1",
        f"--master_port={free_port()}",
    )
    finish(start(folder, "ranks2", "--launcher", "pytorch", launcher=torchrun))
    assert result(folder, "ranks2") == reference


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [("batch_size=3", "num_workers=0"), ("batch_size=2", "num_workers=4")], ids=" ".join
)
def test_batches_and_workers_change_nothing(options, folder, reference):
    work = "-".join(options)
    finish(start(folder, work, options=[f"test_dataloader.{option}" for option in options]))
    assert {**result(folder, work), "config_sha256": None} == {**reference, "config_sha256": None}
