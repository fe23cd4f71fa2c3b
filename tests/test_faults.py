"""Whole runs through the real command line that are killed, interrupted, or find damaged files:
then the same command again.

Two seconds of a quick run show most of it in tests/evaluation/test_counts.py and
tests/test_files.py; these take minutes.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import test_interruption
from conftest import ROOT
from test_interruption import counted, finish, folder, free_port, reference, result  # noqa: F401 - fixtures

pytestmark = pytest.mark.slow
start = functools.partial(test_interruption.start, launcher=(sys.executable,))


def wait_for(condition, seconds: float = 500) -> None:
    end = time.time() + seconds
    while not condition():
        assert time.time() < end
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    """Processes below a process, to any depth."""
    direct = [
        int(p)
        for task in Path(f"/proc/{pid}/task").glob("*")
        for p in (task / "children").read_text().split()
    ]
    return [*direct, *(below for child in direct for below in children(child))]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


@pytest.mark.parametrize("rank", [0, 1])
def test_kill_9_of_one_of_two_ranks(rank, folder, reference):  # noqa: F811
    """The other ends by itself, here without torchrun, which would end it."""
    work = f"killed_rank{rank}"

    def both(port: str) -> list[subprocess.Popen]:
        own = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, SLURM_NTASKS="2", SLURM_LOCALID="0")
        processes = []
        for number in "01":
            os.environ.update(own, SLURM_PROCID=number)
            processes.append(start(folder, work, "--launcher", "slurm"))
        for name in (*own, "SLURM_PROCID"):
            del os.environ[name]
        return processes

    processes = both(free_port())
    file = folder / work / f"counts/rank{rank}.jsonl"
    wait_for(lambda: file.is_file() and b"\n" in file.read_bytes())
    processes[rank].kill()
    killed = time.time()
    _, err = processes[1 - rank].communicate(timeout=60)
    print(f"the other rank ended after {time.time() - killed:.1f} s")
    assert processes[1 - rank].returncode == 2, err[-3000:]
    assert "error: Another rank has ended" in err and "Traceback" not in err, err[-3000:]
    assert not (folder / work / "results.json").exists()
    kept = counted(folder, work)
    assert kept
    said = [finish(process) for process in both(free_port())]
    assert any(f"continuing: {kept} of 7 images are done" in text for text in said)
    assert result(folder, work) == reference


def test_kill_9_of_a_dataloader_worker(folder, reference):  # noqa: F811
    process = start(folder, "killed_worker")
    wait_for(lambda: counted(folder, "killed_worker") or process.poll() is not None)
    workers = [pid for pid in children(process.pid) if "test.py" in command_of(pid)]
    assert workers
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    if process.returncode:  # else its last images were read before
        assert (
            process.returncode == 2
            and "error: A process that reads images died" in err
            and "Traceback" not in err
        ), err[-3000:]
        finish(start(folder, "killed_worker"))
    assert result(folder, "killed_worker") == reference


@pytest.mark.parametrize(("sent", "codes"), [(signal.SIGTERM, (-15,)), (signal.SIGINT, (130,))])
def test_signals_end_it_without_a_traceback_and_keep_what_is_done(sent, codes, folder, reference):  # noqa: F811
    """As ``kill`` sends the one to the main process, and Ctrl-C the other to all."""
    work = f"signal{sent}"
    process = start(folder, work)
    wait_for(lambda: counted(folder, work))
    started, below = time.time(), children(process.pid)
    os.killpg(process.pid, sent) if sent == signal.SIGINT else process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode in codes and "Traceback" not in err, (process.returncode, err[-3000:])
    assert sent != signal.SIGINT or "interrupted" in err
    print(f"ended after {time.time() - started:.1f} s")
    kept = counted(folder, work)
    wait_for(lambda: not any(map(is_alive, below)), 15)
    assert (
        f"continuing: {kept} of 7" in finish(start(folder, work))
        and result(folder, work) == reference
    )


def test_two_runs_in_one_work_dir(folder, reference):  # noqa: F811
    """The second is refused and the first is not disturbed."""
    first = start(folder, "shared")
    wait_for(lambda: counted(folder, "shared"))
    first.send_signal(signal.SIGSTOP)  # so that it is still at work when the second one asks
    refused = finish(start(folder, "shared"), code=2)
    first.send_signal(signal.SIGCONT)
    assert (
        f"error: process {first.pid} on " in refused
        and "wait until it has ended, or choose another folder with --work-dir" in refused
    )
    finish(first)
    assert result(folder, "shared") == reference and not list((folder / "shared").glob(".lock*"))


DAMAGES = {
    "a line doubled and noise": lambda counts: _rewrite(
        counts / "rank0.jsonl", lambda data: data + data + os.urandom(200) + b"\n"
    ),
    "the first line cut": lambda counts: _rewrite(counts / "rank0.jsonl", lambda data: data[9:]),
    "a digit changed": lambda counts: _rewrite(
        counts / "rank0.jsonl", lambda data: data[:-8] + bytes([data[-8] ^ 1]) + data[-7:]
    ),
    "run.json cut": lambda counts: _rewrite(counts / "run.json", lambda data: data[:40]),
    "run.json missing": lambda counts: (counts / "run.json").unlink(),
    "clock set forward and back": lambda counts: [
        os.utime(path, (4e9 * (i % 2), 4e9 * (i % 2))) for i, path in enumerate(counts.iterdir())
    ],
}


def _rewrite(path: Path, change) -> None:
    path.write_bytes(change(path.read_bytes()))


def test_damaged_partial_files(folder, reference):  # noqa: F811
    """One killed run for all kinds of damage; each is gone on with, to the undisturbed figures."""
    process = start(folder, "damaged")
    wait_for(lambda: counted(folder, "damaged") >= 2)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    sound = {path.name: path.read_bytes() for path in (folder / "damaged/counts").iterdir()}
    for damage in DAMAGES.values():
        (folder / "damaged/counts").mkdir(exist_ok=True)
        for name, data in sound.items():
            (folder / "damaged/counts" / name).write_bytes(data)
        (folder / "damaged/results.json").unlink(missing_ok=True)
        damage(folder / "damaged/counts")
        finish(start(folder, "damaged"))
        assert result(folder, "damaged") == reference


@pytest.mark.parametrize("killed", ["ablate", "worker"])
def test_a_killed_ablation_leaves_nothing_running_and_is_continued(killed, folder):  # noqa: F811
    out = f"ablated_{killed}"
    command = [
        sys.executable,
        str(ROOT / "tools/ablate.py"),
        "sfp-table2",
        "--datasets",
        "toyland",
        "--out",
        out,
        "--devices",
        "cpu",
    ]
    command += ["--cfg-options", "test_dataloader.dataset.scenes=2"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "SFP_DATA": str(folder / "data"),
    }
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: list((folder / out).rglob("rank0.jsonl")))
    below = children(process.pid)
    victim = {
        "ablate": process.pid,
        "worker": next(pid for pid in below if "--run-group" in command_of(pid)),
    }[killed]
    os.kill(victim, signal.SIGKILL)
    if killed == "worker":  # the others go on, and the cell is reported
        process.terminate()
    process.communicate(timeout=60)
    wait_for(lambda: not any(map(is_alive, below)), 20)
    assert process.returncode


def test_a_results_file_that_was_cut_is_measured_again(folder):  # noqa: F811
    command = [
        sys.executable,
        str(ROOT / "tools/benchmark.py"),
        "--methods",
        "CLIP",
        "--out",
        "cut",
        "--devices",
        "cpu",
    ]
    command += ["--cfg-options", "test_dataloader.dataset.scenes=2"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "SFP_DATA": str(folder / "data"),
    }

    def run() -> str:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    run()
    (path,) = (folder / "cut").rglob("results.json")
    sound = json.loads(path.read_text())
    assert "1 cells: 1 finished" in run()
    path.write_bytes(path.read_bytes()[:300])
    assert "1 cells: 0 finished, 1 to do" in run()
    assert json.loads(path.read_text())["IoU_per_class"] == sound["IoU_per_class"]
