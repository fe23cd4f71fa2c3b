"""``sfp segment``.

Folders in, results out, what is done is skipped, nothing is overwritten; names and files for other
tools.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

import sfp
from sfp.datasets import toyland
from sfp.exports.png import read_provenance

NAMES = "sky; sea, ocean; house"
ENDINGS = ("_labels.csv", "_labels.png", "_overlay.jpg")


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
    def run(*arguments, code=0, names=NAMES, alone=True):
        """``alone``: without the usual background."""
        alone = ["--no-background"] if alone and "--background" not in arguments else []
        found, output, error = tool(
            "segment", *arguments, *alone, "--names", names, "--model", "Toyland", "--device", "cpu"
        )
        assert found == code, (output, error)
        return output if code == 0 else error

    return run


def made(folder):
    """All files but the run's own records."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(file) for file in files if file.parts[0] != ".sfp")


def test_folders_and_two_pictures_of_one_name(segment, photos, tmp_path):
    segment(photos, "--out", "out")
    stems = ["a", "a_png", "inner/a", "inner/b"]
    assert made(tmp_path / "out") == sorted(
        f"{stem}{ending}" for stem in stems for ending in ENDINGS
    )
    segmenter = sfp.Segmenter("SFP", "Toyland", device="cpu")
    for stem, name in zip(stems, ["a.jpg", "a.png", "inner/a.jpg", "inner/b.webp"], strict=True):
        expected = segmenter(photos / name, ["sky", ["sea", "ocean"], "house"]).labels
        assert (
            np.asarray(Image.open(tmp_path / f"out/{stem}_labels.png")) == expected
        ).mean() > 0.999


# over 5 s: the command runs five times
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
    assert changed() == [f"{stem}{ending}" for stem in ("a", "inner/b") for ending in ENDINGS]

    assert "done with" not in segment(photos, "--out", "out", "--stride", 56)  # another setting
    assert len(changed()) == 12 and read_provenance(tmp_path / "out/a_labels.png")["stride"] == 56
    assert "done with" not in segment(photos, "--out", "out", "--stride", 56, "--fresh")
    assert made(tmp_path / "out") == sorted(before)


def test_results_among_the_pictures(segment, photos):
    segment(photos, "--out", photos)
    count = len(made(photos))
    assert "4 of 4 are done" in segment(photos, "--out", photos)
    assert len(made(photos)) == count == 5 + 12


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
    assert len(made(tmp_path / "out")) == 12
    (photos / "worse.png").write_text("no picture")
    assert "2 of 6 images could not be segmented" in segment(photos, "--out", "out", code=2)


def test_wrong_methods(segment, photos):
    assert "did you mean 'SFP'" in segment(photos, "--methods", "CLIP,SPF", code=2)


def test_the_same_command_again_needs_no_model(segment, photos, tmp_path, monkeypatch):
    """Asked for in other words it does, and finds the same settings."""
    segment(photos, "--out", "out")

    def no_model(*_, **__):
        raise AssertionError("a model is loaded")

    with monkeypatch.context() as patch:
        patch.setattr(sfp.Segmenter, "__init__", no_model)
        assert "4 of 4 are done" in segment(photos, "--out", "out")
        with pytest.raises(AssertionError):
            segment(photos, "--out", "out", "--pm", "SOM")
    before = made(tmp_path / "out")
    said = segment(photos, "--out", "out", "--pm", "SOM")
    assert "4 of 4 are done" in said and "->" not in said and made(tmp_path / "out") == before
    assert "4 of 4 are done" not in segment(photos, "--out", "out", "--no-purify")


class TestNames:
    def card(self, folder):
        return read_provenance(folder / "out/a_labels.png")

    def test_a_file_is_a_list(self, segment, photos, tmp_path):
        (tmp_path / "mine.txt").write_text("sky\nsea, ocean\n", encoding="utf-8")
        said = segment(photos / "a.jpg", "--out", "out", names="mine.txt", alone=False)
        assert "2 names of mine.txt" in said
        assert self.card(tmp_path)["words"][1:] == [["sky"], ["sea", "ocean"]]

    def test_a_shipped_list(self, segment, photos, tmp_path):
        said = segment(photos / "a.jpg", "--out", "out", names="toyland", alone=False)
        assert "16 names of" in said and "background" not in said
        assert [words[0] for words in self.card(tmp_path)["words"]] == list(toyland.CLASSES)

    def test_a_word_is_a_word_though_a_file_is_called_so(self, segment, photos, tmp_path):
        (tmp_path / "boat").write_text("sky\n")
        segment(photos / "a.jpg", "--out", "out", names="boat")
        assert self.card(tmp_path)["words"] == [["boat"]]

    def test_few_names_get_a_background(self, segment, photos, tmp_path):
        said = segment(photos / "a.jpg", "--out", "out", names="boat", alone=False)
        assert "Around a single name the background is asked for, too: sky, cloud, wall" in said
        card = self.card(tmp_path)
        assert card["names"] == ["background", "boat"] and len(card["words"][0]) > 20
        assert "Around" not in segment(photos / "a.jpg", "--out", "out", names="boat")
        assert self.card(tmp_path)["words"] == [["boat"]]
        many = "boat, sun, house, star, fish, car"
        assert "Around" not in segment(photos / "a.jpg", "--out", "out", names=many, alone=False)

    def test_the_boat_is_found(self, segment, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        scene, found = toyland.make_scene("val", 10), {}
        Image.fromarray(scene.image).save("boat.png")
        for alone in (True, False):
            segment("boat.png", "--out", "out", names="boat", alone=alone)
            labels = np.asarray(Image.open("out/boat_labels.png"))
            mask = labels == (0 if alone else 1)
            truth = scene.labels == toyland.CLASSES.index("boat")
            found[alone] = (mask & truth).sum() / (mask | truth).sum()
        assert found[True] < 0.1 and found[False] > 0.4, found


class TestFormats:
    def test_files_for_all_pictures(self, segment, photos, tmp_path):
        said = segment(photos, "--format", "coco, labelstudio, areas", "--parts", "--out", "out")
        assert "4 pictures -> " in said
        coco = json.loads((tmp_path / "out/coco.json").read_text())
        names = ["a.jpg", "a.png", "inner/a.jpg", "inner/b.webp"]
        assert [image["file_name"] for image in coco["images"]] == names
        assert [each["name"] for each in coco["categories"]] == ["sky", "sea", "house"]
        assert [each["id"] for each in coco["annotations"]] == list(
            range(1, 1 + len(coco["annotations"]))
        )
        assert all(0 < each["score"] <= 1 for each in coco["annotations"])
        assert len({each["image_id"] for each in coco["annotations"]}) == 4
        tasks = json.loads((tmp_path / "out/labelstudio.json").read_text())
        regions = [len(task["predictions"][0]["result"]) for task in tasks]
        assert sum(regions) == len(coco["annotations"]) > 12
        assert '<Label value="house"' in (tmp_path / "out/labelstudio.xml").read_text()
        head, *rows = (tmp_path / "out/areas.csv").read_text().splitlines()
        assert head == "picture,sky,sea,house" and [row.split(",")[0] for row in rows] == names
        for row in rows:
            assert sum(map(float, row.split(",")[1:])) == pytest.approx(1, abs=1e-5)
        assert not list((tmp_path / "out").rglob("*_overlay.jpg"))

    def test_later_runs_add_to_them(self, segment, photos, tmp_path):
        """A file has all results of its settings, also those of runs that asked for none."""
        segment(photos / "a.jpg", "--out", "out")
        segment(photos / "a.png", "--out", "out", "--format", "coco")
        segment(photos / "inner/b.webp", "--out", "out", "--window", 0)
        said = segment(photos / "inner/b.webp", "--out", "out", "--window", 0, "--format", "coco")
        assert "1 of 1 are done" in said and "1 picture, without 2 results of other" in said
        assert "2 pictures, without 1" in segment(
            photos / "a.jpg", "--out", "out", "--format", "coco"
        )
        coco = json.loads((tmp_path / "out/coco.json").read_text())
        assert [image["file_name"] for image in coco["images"]] == ["a.jpg", "a.png"]
        expected = sfp.Segmenter("SFP", "Toyland", device="cpu")(
            photos / "a.png", ["sky", ["sea", "ocean"], "house"]
        ).to_coco("a.png")
        own = [each for each in coco["annotations"] if each["image_id"] == 2]
        for each, other in zip(own, expected["annotations"], strict=True):
            assert each["segmentation"] == other["segmentation"]
            assert each["score"] == pytest.approx(other["score"], abs=2e-3)

    def test_two_pictures_that_cvat_cannot_tell_apart(self, segment, photos, tmp_path):
        said = segment(photos, "--out", "out", "--format", "cvat", code=2)
        assert "a.jpg and a.png are one name" in said
        assert not (tmp_path / "out").exists()  # told before any work
        (photos / "a.png").rename(tmp_path / "a.png")
        segment(photos, "--out", "out", "--format", "cvat")
        with zipfile.ZipFile(tmp_path / "out/cvat.zip") as archive:
            assert {"SegmentationClass/inner/b.png", "labelmap.txt"} <= set(archive.namelist())
        # a result of another run has the name
        said = segment(tmp_path / "a.png", "--out", "out", "--format", "cvat", code=2)
        assert (
            "a.jpg and a.png are one name" in said and (tmp_path / "out/a_png_labels.png").exists()
        )

    def test_everything_of_each_picture(self, segment, photos, tmp_path):
        segment(photos / "a.jpg", "--out", "out", "--format", "npz")
        result = sfp.Segmentation.load(tmp_path / "out/a_result.npz")
        assert result.scores.shape[0] == 3 and str(result).startswith("Segmentation of 96x64")
