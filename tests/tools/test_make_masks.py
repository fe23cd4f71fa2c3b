"""tools/make_masks.py: pictures and configs, killed and continued, and what is wrong."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from forked import Program, run
from PIL import Image

import sfp
from sfp.datasets import toyland
from sfp.regions import load_masks

CUT = "cut:backbone=colour,side=160"


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.setenv("SFP_CACHE", str(tmp_path / "cache"))
    for number in range(6):
        path = tmp_path / f"photos/{'sub/' if number == 5 else ''}{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(toyland.make_scene("val", number).image).save(path)
    return tmp_path / "photos"


def test_a_folder_of_pictures(photos, tool, toyland_clip):
    """Into the cache, where methods find them, and into files, which they take as well."""
    out = photos.parent / "masks"
    assert tool("make_masks", photos, "--masks", CUT, "--out", out)[0] == 0
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*"))
    assert files == ["0.npz", "1.npz", "2.npz", "3.npz", "4.npz", "sub/5.npz"]
    assert len(list((photos.parent / "cache/masks").glob("*/*.npz"))) == 6
    again = tool("make_masks", photos, "--masks", CUT, "--out", out)
    assert again[:2] == (0, "nothing to do: all 6 images have their masks\n")
    assert "nothing to do" in tool("make_masks", photos, "--masks", CUT)[1]
    (out / "3.npz").write_bytes(b"PK")
    code, told, _ = tool("make_masks", photos, "--masks", CUT, "--out", out)
    assert code == 0 and "continuing: 5 of 6" in told and "\n1 images" in told
    other = tool("make_masks", photos, "--masks", CUT.replace("160", "176"), "--out", out)
    assert "6 images" in other[1] and "continuing" not in other[1]  # other settings: made anew
    tool("make_masks", photos, "--masks", CUT, "--out", out)
    labels = [
        sfp.Segmenter("LaVG", toyland_clip, masks=masks, window=112, short_side=112)(
            photos / "sub/5.png", ["sky", "sea", "boat"]
        ).labels
        for masks in (str(out), dict(type="cut", backbone="colour", side=160))
    ]
    assert np.array_equal(*labels)
    prints = {load_masks(masks, toyland_clip).fingerprint for masks in (out, CUT)}
    assert len(prints) == 2


def test_killed_and_continued(photos):
    """What was written is whole, nothing is made twice, the rest is made."""
    out, environment = photos.parent / "masks", {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [ROOT / "tools/make_masks.py", photos, "--masks", CUT.replace("160", "240")]
    command += ["--out", out, "--device", "cpu"]

    def done() -> dict[Path, int]:
        files = [path for path in out.rglob("*.npz") if not path.name.startswith(".")]
        return {path: path.stat().st_mtime_ns for path in files}

    process = Program(*command, cwd=ROOT, environment=environment)
    while process.poll() is None and not done():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    seen = done()
    assert 0 < len(seen) < 6, "the kill came too late"
    for file in seen:
        with np.load(file) as saved:
            assert saved["masks"].any()
    finished = run(*command, cwd=ROOT, environment=environment)
    assert finished.returncode == 0, finished.stderr[-1500:]
    assert f"continuing: {len(seen)} of 6 images have their masks" in finished.stdout
    assert "image/s" in finished.stderr and len(done()) == 6
    assert seen.items() <= done().items()
    assert not [path for path in out.rglob(".*partial*")]


# over 5 s: masks are made twice, and three evaluations take them
def test_a_config_and_what_its_results_record(tmp_path, monkeypatch, tool):
    """Toyland's scenes beforehand; the run takes them, and records which masks it had."""
    pytest.importorskip("mmseg")
    import json

    monkeypatch.setenv("SFP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SFP_DATA", str(tmp_path / "data"))
    toyland.write_split(tmp_path / "data/toyland", "val", 2)
    few = "test_dataloader.dataset.scenes=2"
    config = ROOT / "configs/cfg_toyland.py"
    for method in ("LaVG", "CorrCLIP"):  # of one setting: made once
        told = tool("make_masks", config, "--cfg-options", f"model.method={method}", few)
        assert told[0] == 0
        assert told[1].startswith("2 images" if method == "LaVG" else "nothing to do")
    out = tmp_path / "masks"
    tool("make_masks", config, "--out", out, "--cfg-options", "model.method=LaVG", few)
    kept = sorted((tmp_path / "cache/masks").glob("*/*.npz"))
    times = [file.stat().st_mtime_ns for file in kept]
    found = {}
    for name, options in {
        "cut": ["model.method=LaVG"],
        "folder": ["model.method=LaVG", f"model.masks={out}"],
        "corrclip": ["model.method=CorrCLIP"],
    }.items():
        work = tmp_path / name
        arguments = ("--work-dir", work, "--cfg-options", few, *options)
        assert tool("test", config, *arguments)[0] == 0
        found[name] = json.loads((work / "results.json").read_text())
    assert [file.stat().st_mtime_ns for file in kept] == times and len(kept) == 2
    assert found["cut"]["mIoU"] == found["folder"]["mIoU"] > 20
    cut = dict(type="cut", backbone="colour", side=160)
    assert found["cut"]["options"]["masks"] == cut == found["corrclip"]["options"]["masks"]
    assert found["folder"]["options"]["masks"] == str(out)
    prints = [found[name]["backbones"]["masks"] for name in found]
    assert prints[0] == prints[2] != prints[1] and all(len(one) == 64 for one in prints)
    assert found["folder"]["weight_files"]["masks"] == prints[1]
    assert found["corrclip"]["backbones"]["proxy"] == "colour"
    # other masks in the folder are noticed before anything is run
    from sfp.evaluation.config import read_config
    from sfp.evaluation.provenance import weight_files

    cfg = read_config(config, [few, "model.method=LaVG", f"model.masks={out}"])
    assert weight_files(cfg) == found["folder"]["weight_files"]
    file = sorted(out.rglob("*.npz"))[0]
    np.savez(file, masks=np.ones((1, 377, 453), bool))
    assert weight_files(cfg)["masks"] != prints[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{nowhere}"], "There is no picture or folder"),
        (["{empty}"], "has no pictures"),
        (["{photos}", "--masks", "cutt"], "Unknown mask program 'cutt'"),
        (["{photos}", "--masks", "{empty}"], "are given already; name a program"),
        (["{photos}", "--cfg-options", "a=1"], "--cfg-options is for a config"),
        (["{photos}"], "vit_base_patch8_224.dino are not on this machine"),
        (["{config}", "{photos}"], "is a config; give it alone"),
        (["{config}"], "SFP has no masks; add --cfg-options model.method=LaVG"),
        (["{photos}", "{photos}", "--masks", CUT, "--out", "{empty}"], "would both have"),
    ],
)
def test_mistakes(arguments, words, photos, tool, tmp_path):
    (tmp_path / "empty").mkdir()
    places = dict(
        photos=photos, empty=tmp_path / "empty", nowhere=tmp_path / "nowhere",
        config=ROOT / "configs/cfg_toyland.py",
    )  # fmt: skip
    code, _, error = tool("make_masks", *[one.format(**places) for one in arguments])
    assert code == 2 and words in error


def test_a_picture_that_cant_be_read_leaves_the_others_their_masks(photos, tool):
    (photos / "2.png").write_bytes(b"none")
    code, told, error = tool("make_masks", photos, "--masks", CUT)
    assert code == 2 and "5 images" in told
    assert "1 of 6 images have no masks; the first: " in error and "2.png can't be read" in error
