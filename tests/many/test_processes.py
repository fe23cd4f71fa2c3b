"""Several processes: the labels of one, also when some are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest
from conftest import ROOT
from many.test_run import expected, go, labels  # noqa: F401
from many_photos import COUNT, NAMES, photos, recipe  # noqa: F401

from sfp.errors import SFPError
from sfp.many.processes import several_processes


def children():
    own = psutil.Process().children()
    return [child for child in own if "spawn_main" in " ".join(child.cmdline())]


def killing(engine, victims):
    """The engine, whose processes are killed after the given numbers of outcomes."""

    def own(units, summary):
        for number, outcome in enumerate(engine(units, summary)):
            if number in victims:
                children = [
                    c for c in psutil.Process().children() if "spawn_main" in str(c.cmdline())
                ]
                children[victims[number]].kill()
            yield outcome

    return own


# over 5 s: each of the two processes imports torch for itself, as users' do
@pytest.mark.parametrize("victims", [{}, pytest.param({3: 0, 9: 1}, marks=pytest.mark.slow)])
def test_two_processes(victims, photos, recipe, expected, tmp_path):  # noqa: F811
    engine = killing(several_processes(recipe, tmp_path, 2), victims)
    summary = go(photos, tmp_path, recipe, engine, quiet=True, workers=2)
    assert summary.failed == 0 and summary.segmented + summary.done_before == COUNT
    assert labels(tmp_path) == expected
    assert not [
        child for child in psutil.Process().children() if "spawn_main" in str(child.cmdline())
    ]


@pytest.mark.slow
def test_a_model_that_cannot_be_had(photos, recipe, tmp_path):  # noqa: F811
    wrong = replace(recipe, model="ViT-B/16", pretrained="nowhere")
    with pytest.raises(SFPError, match="nowhere"):
        go(photos, tmp_path / "out", wrong, several_processes(wrong, tmp_path / "out", 1))
    assert not (tmp_path / "out").exists()


def test_none_at_all(recipe, tmp_path):  # noqa: F811
    with pytest.raises(SFPError, match="--processes 0 must be at least 1"):
        several_processes(recipe, tmp_path, 0)


def command(photos, out, *more):  # noqa: F811
    arguments = ["segment", photos, "--out", out, "--names", ",".join(NAMES), "--model", "Toyland"]
    arguments += ["--device", "cpu", "--method", "CLIP", "--window", "112", "--short-side", "112"]
    return subprocess.Popen(
        [sys.executable, "-m", "sfp", *map(str, arguments), *more],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_the_parent_is_killed_and_its_children_end(photos, tmp_path):  # noqa: F811
    parent = command(photos, tmp_path / "out", "--processes", "2", "--no-background")
    while not list(tmp_path.rglob("*_labels.png")):
        assert parent.poll() is None, parent.communicate()
        time.sleep(0.01)
    children = psutil.Process(parent.pid).children()
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    assert len(children) >= 2
    assert not psutil.wait_procs(children, timeout=10)[1]
    before = len(list(tmp_path.rglob("*_labels.png")))
    again = command(photos, tmp_path / "out", "--processes", "2", "--no-background")
    out, err = again.communicate()
    assert again.returncode == 0, err
    assert before < COUNT and f"{before} of {COUNT} are done" in out
    assert not list(tmp_path.rglob("*.partial*"))
