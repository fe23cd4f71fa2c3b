"""``tools/segment.py``.

Folders in, results out, what is done is skipped, nothing is overwritten.
"""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from PIL import Image

import sfp
from sfp.datasets import toyland
from sfp.exports.png import read_provenance

NAMES = "sky; sea, ocean; house"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number, name in enumerate(["a.jpg", "a.png", "inner/a.jpg", "inner/b.webp"]):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(toyland.make_scene("val", number).image).resize((96, 64)).save(
            folder / name
        )
    (folder / ".hidden.jpg").write_text("")
    return folder


@pytest.fixture
def photos(pictures, tmp_path, monkeypatch):
    """A copy of the pictures in the working folder."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(pictures, tmp_path / "photos")


@pytest.fixture
def segment(tool):
    def run(*arguments, code=0):
        found, output, error = tool(
            "segment", *arguments, "--names", NAMES, "--model", "Toyland", "--device", "cpu"
        )
        assert found == code, (output, error)
        return output if code == 0 else error

    return run


def made(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_folders_and_two_pictures_of_one_name(segment, photos, tmp_path):
    segment(photos, "--out", "out")
    stems = ["a", "a_png", "inner/a", "inner/b"]
    assert made(tmp_path / "out") == sorted(
        f"{stem}{ending}" for stem in stems for ending in ("_labels.png", "_overlay.jpg")
    )
    segmenter = sfp.Segmenter("SFP", "Toyland", device="cpu")
    for stem, name in zip(stems, ["a.jpg", "a.png", "inner/a.jpg", "inner/b.webp"], strict=True):
        expected = segmenter(photos / name, ["sky", ["sea", "ocean"], "house"]).labels
        assert (
            np.asarray(Image.open(tmp_path / f"out/{stem}_labels.png")) == expected
        ).mean() > 0.999


def test_what_is_done_is_skipped(segment, photos, tmp_path):
    segment(photos, "--out", "out")
    before = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in made(tmp_path / "out")}

    def changed():
        return [
            name
            for name, time in before.items()
            if (tmp_path / "out" / name).stat().st_mtime_ns != time
        ]

    assert "4 of 4 are done" in segment(photos, "--out", "out") and not changed()

    (tmp_path / "out/a_overlay.jpg").unlink()
    os.utime(photos / "inner/b.webp")  # the picture may be another one now
    assert "2 of 4 are done" in segment(photos, "--out", "out")
    assert changed() == [
        "a_labels.png",
        "a_overlay.jpg",
        "inner/b_labels.png",
        "inner/b_overlay.jpg",
    ]

    assert "done with" not in segment(photos, "--out", "out", "--stride", 56)  # another setting
    assert len(changed()) == 8 and read_provenance(tmp_path / "out/a_labels.png")["stride"] == 56
    assert "done with" not in segment(photos, "--out", "out", "--stride", 56, "--fresh")
    assert made(tmp_path / "out") == sorted(before)


def test_results_among_the_pictures(segment, photos):
    segment(photos, "--out", photos)
    count = len(made(photos))
    assert "4 of 4 are done" in segment(photos, "--out", photos)
    assert len(made(photos)) == count == 5 + 8


def test_another_picture_of_the_same_name_later(segment, photos, tmp_path):
    """Neither results of another picture nor files of unknown origin are overwritten."""
    segment(photos / "a.jpg", "--out", "out")
    first = (tmp_path / "out/a_labels.png").read_bytes()
    assert "a_jpg_labels.png" in segment(photos / "inner/a.jpg", "--out", "out")
    assert (tmp_path / "out/a_labels.png").read_bytes() == first
    (tmp_path / "out/b_labels.png").write_text("mine")
    segment(photos / "inner/b.webp", "--out", "out")
    assert (tmp_path / "out/b_labels.png").read_text() == "mine" and (
        tmp_path / "out/b_webp_labels.png"
    ).is_file()


def test_several_methods_side_by_side(segment, photos, tmp_path):
    segment(photos / "a.jpg", "--out", "out", "--methods", "CLIP, SC-CLIP,SFP")
    assert made(tmp_path / "out") == ["a_methods.png"]
    with Image.open(tmp_path / "out/a_methods.png") as strip:
        assert strip.width > 4 * 96 * strip.height / 64 * 0.5 and strip.width > 3 * strip.height
    assert [
        card["method"] for card in read_provenance(tmp_path / "out/a_methods.png")["methods"]
    ] == [
        "CLIP",
        "SC-CLIP",
        "SFP",
    ]
    assert "1 of 1 are done" in segment(
        photos / "a.jpg", "--out", "out", "--methods", "CLIP,SC-CLIP,SFP"
    )
    assert "done with" not in segment(photos / "a.jpg", "--out", "out", "--methods", "CLIP,SFP")


def test_background(segment, photos, tmp_path):
    segment(photos / "a.jpg", "--out", "out", "--background", "rest", "--options", "prob_thd=0.6")
    card = read_provenance(tmp_path / "out/a_labels.png")
    assert card["background"] == "rest" and card["prob_thd"] == 0.6
    segment(photos / "a.jpg", "--out", "out", "--background", "rest, sand")
    assert read_provenance(tmp_path / "out/a_labels.png")["words"][0] == ["rest", "sand"]
    assert "Nothing would fall to the background" in segment(
        photos / "a.jpg", "--out", "out", "--background", "rest", code=2
    )


def test_broken_pictures_do_not_stop_the_others(segment, photos, tmp_path):
    (photos / "broken.png").write_text("no picture")
    assert "broken.png can't be read" in segment(photos, "--out", "out", code=2)
    assert len(made(tmp_path / "out")) == 8
    (photos / "worse.png").write_text("no picture")
    assert "2 of 6 images could not be segmented" in segment(photos, "--out", "out", code=2)


def test_wrong_methods(segment, photos):
    assert "did you mean 'SFP'" in segment(photos, "--methods", "CLIP,SPF", code=2)
