"""Whole runs of one process: the labels, going on, and what stops it."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from forked import Program
from many_photos import COUNT, NAMES, photos, recipe  # noqa: F401
from PIL import Image
from test_files import files_limited, small_disk  # noqa: F401

import sfp
from sfp.errors import SFPError
from sfp.many.items import FileItem
from sfp.many.recipe import scores_of
from sfp.many.run import Summary, one_process, run
from sfp.many.sources import Sources
from sfp.many.worker import Job, Worker


def go(given, out, recipe, engine=None, **more):  # noqa: F811
    given = [given] if isinstance(given, (str, Path)) else given
    sources = Sources([str(each) for each in given], out)
    return run(sources, out, recipe, engine, **more)


def labels(out: Path) -> dict[str, bytes]:
    """Bytes of the label maps by their names."""
    return {
        str(file.relative_to(out)): np.asarray(Image.open(file)).tobytes()
        for file in sorted(out.rglob("*_labels.png"))
    }


@pytest.fixture(scope="session")
def expected(photos, recipe, tmp_path_factory):  # noqa: F811
    """What one process makes."""
    out = tmp_path_factory.mktemp("one")
    summary = go(photos, out, recipe, quiet=True)
    assert (summary.pictures, summary.segmented, summary.failed) == (COUNT, COUNT, 0)
    return labels(out)


def test_labels_are_those_of_the_segmenter(photos, recipe, expected):  # noqa: F811
    segmenter = sfp.Segmenter("CLIP", "Toyland", device="cpu", **recipe.options)
    for name in ("00", "b/01", "b/c/02"):
        alone = segmenter(photos / f"{name}.jpg", NAMES).labels.astype(np.uint8)
        made = np.frombuffer(expected[f"{name}_labels.png"], np.uint8).reshape(alone.shape)
        assert (made == alone).mean() > 0.999


@pytest.mark.parametrize("background", [None, "rest", ["background", "sand"]])
def test_scores_are_those_of_instances(background, photos, recipe):  # noqa: F811
    segmenter = sfp.Segmenter("CLIP", "Toyland", device="cpu", **recipe.options)
    more = dict(background=background, prob_thd=0.5 if background == "rest" else None)
    result = segmenter(photos / "00.jpg", NAMES, keep_scores="label", **more)
    for parts in (False, True):
        instances = result.annotated(parts=parts).instances
        expected = [instance.score for instance in instances]
        assert scores_of(result, parts) == pytest.approx(expected, abs=1.1e-4) and expected


def test_a_terminal_is_told_what_is_loaded(photos, recipe, tmp_path, capsys, monkeypatch):  # noqa: F811
    for terminal, told in ((True, True), (False, False)):
        monkeypatch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal)
        go(photos / "00.jpg", tmp_path / str(terminal), recipe)
        assert capsys.readouterr().err.startswith("loading Toyland ...\n") == told
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    go(photos / "00.jpg", tmp_path / "True", recipe)  # nothing is left to do
    assert "loading" not in capsys.readouterr().err


def test_the_summary(photos, recipe, tmp_path, capsys):  # noqa: F811
    summary = go(photos / "b/c", tmp_path / "out", recipe)
    found = json.loads((tmp_path / "out/.sfp/summary-1-of-1.json").read_text())
    assert found == summary.as_dict()
    assert found["segmented"] == found["pictures"] == 11 and found["failures"] == []
    assert 0.5 < sum(found["share_of_time"].values()) < 1.01  # the rest is told and noted
    assert found["share_of_time"]["model"] > 0.1
    told = capsys.readouterr()
    assert told.out.count("sky ") == 11 and "11/11" in told.err
    again = go(photos / "b/c", tmp_path / "out", recipe)
    assert (again.segmented, again.done_before, again.wall) == (0, 11, 0)


class TestWhatGoesWrong:
    def test_a_broken_picture_and_a_missing_one(self, photos, recipe, tmp_path, capsys):  # noqa: F811
        (tmp_path / "x.jpg").write_text("no")
        paths = [photos / "00.jpg", tmp_path / "x.jpg", tmp_path / "y.jpg", photos / "b/01.jpg"]
        (tmp_path / "list.txt").write_text("\n".join(map(str, paths)))
        summary = go(tmp_path / "list.txt", tmp_path / "out", recipe)
        assert (summary.segmented, summary.failed) == (2, 2)
        assert len(labels(tmp_path / "out")) == 2
        told = capsys.readouterr().out
        for reason in ("x.jpg can't be read as an image", "There is no file"):
            assert reason in told and any(reason in each for each in summary.failures)
        Image.new("RGB", (50, 50)).save(tmp_path / "x.jpg")  # put right
        summary = go(tmp_path / "list.txt", tmp_path / "out", recipe, quiet=True)
        assert (summary.segmented, summary.done_before, summary.failed) == (1, 2, 1)

    def test_a_model_that_cannot_be_had_leaves_nothing(self, photos, recipe, tmp_path):  # noqa: F811
        with pytest.raises(SFPError, match="nowhere"):
            go(photos, tmp_path / "out", replace(recipe, model="ViT-B/16", pretrained="nowhere.pt"))
        assert not (tmp_path / "out").exists()

    def test_a_disk_that_fills(self, photos, recipe, small_disk, expected):  # noqa: F811
        out = small_disk / "out"
        with pytest.raises(SFPError, match=r"can't be written \(No space left on device\)"):
            go(photos, out, recipe, quiet=True)
        done = labels(out)
        assert 0 < len(done) < COUNT and done.items() <= expected.items()
        assert not list(out.rglob("*.partial*"))

    def test_a_file_that_may_not_grow(self, photos, recipe, tmp_path):  # noqa: F811
        with (
            files_limited(600),
            pytest.raises(SFPError, match=r"can't be written \(File too large"),
        ):
            go(photos, tmp_path / "out", recipe, quiet=True)
        assert not list(tmp_path.rglob("*.partial*"))


SCRIPT = """
import sys, pickle; from pathlib import Path; import torch; torch.set_num_threads(1)
from sfp.many.run import run; from sfp.many.sources import Sources
recipe = pickle.load(open(sys.argv[1], 'rb'))
run(Sources(sys.argv[2:3], sys.argv[3]), Path(sys.argv[3]), recipe)
"""


def start(photos, recipe, out, folder):  # noqa: F811
    (folder / "recipe").write_bytes(pickle.dumps(recipe))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return Program("-c", SCRIPT, folder / "recipe", photos, out, cwd=ROOT, environment=environment)


def made(out: Path) -> dict[str, int]:
    return {str(f.relative_to(out)): f.stat().st_mtime_ns for f in out.rglob("*_labels.png")}


@pytest.mark.parametrize("kills", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_kill_and_go_on(kills, photos, recipe, expected, tmp_path):  # noqa: F811
    """No picture twice, no half file, the same labels."""
    out, randomly = tmp_path / "out", random.Random(kills)
    for _ in range(kills):
        process = start(photos, recipe, out, tmp_path)
        before = len(made(out)) if out.exists() else 0
        while process.poll() is None and (not out.exists() or len(made(out)) < before + 3):
            time.sleep(0.003)
        time.sleep(randomly.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    killed = made(out)
    assert 3 * kills <= len(killed) < COUNT, "killed too late"
    sfp_state = out / ".sfp/journal-1-of-1.txt"
    noted = sfp_state.read_text().count("\n") - 1
    assert noted <= len(killed)
    summary = go(photos, out, recipe, quiet=True)
    assert summary.done_before == len(killed) and summary.segmented == COUNT - len(killed)
    assert killed.items() <= made(out).items()  # none was written again
    assert labels(out) == expected
    assert not list(out.rglob("*.partial*"))


def test_a_lost_journal_costs_no_picture(photos, recipe, tmp_path):  # noqa: F811
    go(photos / "b/c", tmp_path / "out", recipe, quiet=True)
    before = made(tmp_path / "out")
    (tmp_path / "out/.sfp/journal-1-of-1.txt").unlink()
    summary = go(photos / "b/c", tmp_path / "out", recipe, quiet=True)
    assert (summary.segmented, summary.done_before) == (0, 11) and made(tmp_path / "out") == before
    assert (tmp_path / "out/.sfp/journal-1-of-1.txt").is_file()


def test_shards_give_what_one_run_gives(photos, recipe, expected, tmp_path):  # noqa: F811
    segmented = [
        go(photos, tmp_path, recipe, shard=(number, 3), quiet=True).segmented
        for number in (1, 2, 3)
    ]
    assert sum(segmented) == COUNT and min(segmented) > 5
    assert labels(tmp_path) == expected


class _Counted:
    """An item that knows how many are in memory at once."""

    now = most = 0

    def __init__(self, item):
        self.item = item

    def __getattr__(self, name):
        return getattr(self.item, name)

    def read_pixels(self):
        type(self).now += 1
        type(self).most = max(self.most, self.now)
        return self.item.read_pixels()


def test_few_pictures_are_in_memory_whatever_their_number(photos, recipe, tmp_path):  # noqa: F811
    """Readers wait for the model."""
    worker = Worker(recipe.build(), tmp_path, readers=2, writers=1)
    file = str(photos / "00.jpg")
    jobs = [Job(_Counted(FileItem(str(n), f"{n}.jpg", file, 1, 1)), str(n)) for n in range(64)]
    units = [jobs[first : first + 8] for first in range(0, 64, 8)]
    for outcome in worker.work(units):
        assert not outcome.error
        _Counted.now -= 1
    # 8 wait for the model, a unit is with it, 5 go to the disk
    assert 8 <= _Counted.most <= 32


def test_an_engine_that_is_given_up_ends_its_threads(photos, recipe, tmp_path):  # noqa: F811
    engine = one_process(recipe, tmp_path)
    items = list(Sources([str(photos)]))
    outcomes = engine([[Job(item, item.stem) for item in items]], Summary())
    next(outcomes)
    outcomes.close()
    deadline = time.monotonic() + 10
    while any("read pictures" in thread.name for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
