"""Every planted fault is named by tools/check_dataset.py, and several at once are all listed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from owners import SHIPPED
from PIL import Image

from sfp.datasets.layouts import LAYOUTS
from sfp.datasets.preparation import prepare

_VOC = "JPEGImages/2007_000042.jpg"
_STUFF = "annotations/val2017/000000000285_labelTrainIds.png"
_CITY = "gtFine/val/lindau/lindau_000000_000000_gtFine_labelTrainIds.png"
_VOC_LABEL = "SegmentationClass/2007_000042.png"
_ADE_LABEL = "annotations_detectron2/validation/ADE_val_00000001.tif"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A function that gives a dataset's prepared tree; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("prepared")

    def get(name: str) -> Path:
        if not (folder / name).exists():
            shipped = SHIPPED[name](folder / f"{name}_owners")
            prepare(name, shipped.sources, folder / name)
        return folder / name

    return get


@pytest.fixture
def checked(prepared, tmp_path, tool):
    """Copy a prepared tree, plant faults by functions of its root, and return what is printed."""

    def run(name: str, *faults, code: int = 1) -> str:
        data = tmp_path / name
        if not data.exists():
            shutil.copytree(prepared(name), data)
        for fault in faults:
            fault(data / LAYOUTS[name].root)
        found, printed, error = tool(
            "check_dataset", name, "--data", data, "--subset", "--workers", 1
        )
        assert (found, error) == (code, ""), printed
        return printed

    return run


def write(path: str, pixels, **options):
    return lambda root: Image.fromarray(pixels).save(root / path, **options)


def text(path: str, content: str):
    return lambda root: (root / path).write_text(content)


def remove(path: str):
    return lambda root: (root / path).unlink()


def cut(path: str, share: float = 0.6):
    def fault(root: Path) -> None:
        data = (root / path).read_bytes()
        (root / path).write_bytes(data[: int(len(data) * share)])

    return fault


def in_all_labels(folder: str, pattern: str, function):
    """Change the labels of every image."""

    def fault(root: Path) -> None:
        for path in sorted((root / folder).glob(pattern)):
            labels = np.asarray(Image.open(path))
            Image.fromarray(function(labels.astype(int)).astype(labels.dtype)).save(path)

    return fault


def colours(root: Path) -> None:
    """A palette label opened and saved by a program that knows colours only."""
    Image.open(root / _VOC_LABEL).convert("RGB").save(root / _VOC_LABEL)


def labels_200(root: Path) -> None:
    labels = np.asarray(Image.open(root / _VOC_LABEL)).copy()
    labels[:6, :8] = 200  # one percent
    Image.fromarray(labels).save(root / _VOC_LABEL)


_VAL = "ImageSets/Segmentation/val.txt"
_NOISE = np.random.default_rng(0).integers(0, 21, (60, 80), np.uint8)
FAULTS = {
    "missing label": ("voc21", remove(_VOC_LABEL), ["The label", "2007_000042.png is missing"]),
    "missing image": ("voc21", remove(_VOC), ["The image", "2007_000042.jpg is missing"]),
    "label without image": (
        "ade20k",
        remove("images/validation/ADE_val_00000002.jpg"),
        ["ADE_val_00000002.png", "has no image"],
    ),
    "image without label": (
        "ade20k",
        remove("annotations/validation/ADE_val_00000002.png"),
        ["ADE_val_00000002.png is missing"],
    ),
    "wrong size": (
        "voc21",
        write(_VOC_LABEL, _NOISE[:, :70]),
        ["2007_000042.png has 70 x 60 pixels, its image 80 x 60"],
    ),
    "turned label": (
        "voc21",
        write(_VOC_LABEL, np.ascontiguousarray(_NOISE.T)),
        ["has 60 x 80 pixels, its image 80 x 60"],
    ),
    "label 200": (
        "voc21",
        labels_200,
        ["2007_000042.png has the value 200 (1.00%), outside 0 to 20 and 255"],
    ),
    "label 255, none is ignored": (
        "context60",
        in_all_labels("SegmentationClassContext", "*0.png", lambda x: np.where(x == 1, 255, x)),
        ["the value 255", "outside 0 to 59"],
    ),
    "RGB instead of palette": ("voc21", colours, ["2007_000042.png has colours (RGB)", "indices"]),
    "a JPEG as label": ("voc21", write(_VOC_LABEL, _NOISE, format="JPEG"), ["is a JPEG inside"]),
    "truncated image": ("voc21", cut(_VOC), ["2007_000042.jpg can't be read", "truncated"]),
    "truncated label": ("coco_stuff164k", cut(_STUFF), ["285_labelTrainIds.png can't be read"]),
    "no image at all": ("voc21", text(_VOC, "words"), ["2007_000042.jpg can't be read"]),
    "empty file": (
        "city_scapes",
        text(_CITY, ""),
        ["lindau_000000_000000_gtFine_labelTrainIds.png can't be read"],
    ),
    "empty split list": ("voc21", text(_VAL, ""), ["val.txt is empty"]),
    "missing split list": (
        "context60",
        remove("ImageSets/SegmentationContext/val.txt"),
        ["val.txt can't be read"],
    ),
    "duplicate line": (
        "voc21",
        text(_VAL, "2007_000033\n2007_000042\n2007_000033\n"),
        ["'2007_000033' 2 times (lines 1, 3)"],
    ),
    "empty line": (
        "voc21",
        text(_VAL, "2007_000033\n\n2007_000042\n"),
        ["Line 2 of the split list"],
    ),
    "suffixes in the list": (
        "voc21",
        text(_VAL, "2007_000033.jpg\n"),
        ["2007_000033.jpg.jpg is missing"],
    ),
    "shifted up": (
        "coco_stuff164k",
        in_all_labels("annotations/val2017", "*", lambda x: x + (x < 255)),
        ["All labels seem shifted up by one: 171 occurs and 0 does not", "the value 171"],
    ),
    # as in VOC, most pixels are background before the shift
    "shifted down": (
        "voc21",
        in_all_labels("SegmentationClass", "*", lambda x: (np.where(x < 12, 0, x) - 1) % 256),
        ["% of all pixels are to be ignored"],
    ),
    "already reduced": (
        "ade20k",
        in_all_labels("annotations/validation", "*", lambda x: (x - 1) % 256),
        ["down by one: 255 occurs"],
    ),
    "uint8 instead of uint16": (
        "ade847",
        write(_ADE_LABEL, np.zeros((60, 80), np.uint8)),
        ["has 8 bits a pixel, but ade847 needs 16"],
    ),
    "one bit instead of eight": (
        "voc21",
        write(_VOC_LABEL, _NOISE > 9),
        ["has 1 bits a pixel, but voc21 needs 8"],
    ),
    "uint16 instead of uint8": (
        "voc21",
        write(_VOC_LABEL, np.zeros((60, 80), np.uint16)),
        ["has 16 bits a pixel, but voc21 needs 8"],
    ),
    "a 16-bit label too large": (
        "ade847",
        write(_ADE_LABEL, np.full((60, 80), 847, np.uint16)),
        ["value 847 (100.00%), outside 0 to 846"],
    ),
    "stray label": (
        "coco_stuff164k",
        write(_STUFF.replace("285", "001"), _NOISE),
        ["000000000001_labelTrainIds.png", "no image"],
    ),
    "stray file": (
        "city_scapes",
        text("leftImg8bit/val/lindau/Thumbs.db", "x"),
        ["The stray file", "Thumbs.db"],
    ),
    "half-written file": (
        "ade20k",
        text("images/validation/ADE_val_00000001.77.partial.jpg", "x"),
        ["stray file", "partial"],
    ),
    "nothing but ignore": (
        "ade847",
        in_all_labels("annotations_detectron2/validation", "*", lambda x: x * 0 + 65535),
        ["Every pixel"],
    ),
    "no images": (
        "coco_object",
        lambda root: shutil.rmtree(root / "images"),
        ["There is no image *.jpg"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault(fault, checked):
    name, plant, words = FAULTS[fault]
    problems = [line for line in checked(name, plant).splitlines() if line.startswith("problem: ")]
    for word in words:
        assert any(word in problem for problem in problems), problems
    assert all(problem.count(".") and problem.endswith(".") for problem in problems)


@pytest.mark.parametrize("name", ["city_scapes", "coco_stuff164k", "coco_object"])
def test_labels_that_were_never_converted(name, prepared, checked):
    layout, owners = LAYOUTS[name], prepared(name).with_name(f"{name}_owners")

    def plant(root: Path) -> None:
        for path in (root / layout.labels).rglob(f"*{layout.label_suffix}"):
            stem = path.name.removesuffix(layout.label_suffix)
            (source,) = [
                p
                for p in owners.rglob(f"{stem}*.png")
                if p.name in (f"{stem}.png", f"{stem}_gtFine_labelIds.png")
            ]
            shutil.copy(source, path)

    assert f"problem: The labels seem to be the owners' {layout.owners}, not converted" in checked(
        name, plant
    )


def test_all_of_several_faults_are_listed(checked):
    printed = checked(
        "voc21",
        remove("JPEGImages/2007_000033.jpg"),
        cut(_VOC),
        labels_200,
        write("SegmentationClass/2008_000001.png", _NOISE[:50]),
        text(
            "ImageSets/Segmentation/val.txt",
            "2007_000033\n2007_000042\n2008_000001\n2008_000001\n2009_000001\n",
        ),
        text("SegmentationClass/notes.txt", "x"),
    )
    problems = [line for line in printed.splitlines() if line.startswith("problem: ")]
    expected = (
        "2007_000033.jpg is missing",
        "2007_000042.jpg can't be read",
        "value 200",
        "2008_000001.png has 80 x 50",
        "(lines 3, 4)",
        "2009_000001.jpg is missing",
        "2009_000001.png is missing",
        "notes.txt",
    )
    for words in expected:
        assert sum(words in problem for problem in problems) == 1, words
    assert len(problems) == 8 and printed.splitlines()[-1] == "voc21: 2 images, 8 problems"


def test_owners_files_beside_the_labels_are_no_problem(checked):
    """Such as both COCO label sets in one tree, and files that the system hides."""
    extra = write("annotations/val2017/000000000285.png", _NOISE)
    assert "sound" in checked("coco_stuff164k", extra, text("images/val2017/.hidden", "x"), code=0)


def test_a_whole_split_must_have_its_first_and_last_class(prepared, tmp_path, tool, monkeypatch):
    """Without --subset the number of images counts, and classes that are never seen."""
    monkeypatch.setitem(
        LAYOUTS,
        "voc21",
        LAYOUTS["voc21"].__class__(**{**LAYOUTS["voc21"].__dict__, "published": 3}),
    )
    shutil.copytree(prepared("voc21"), tmp_path / "data")
    assert tool("check_dataset", "voc21", "--data", tmp_path / "data")[0] == 0
    in_all_labels("SegmentationClass", "*", lambda x: np.where(x == 0, 1, x))(
        tmp_path / "data/VOCdevkit/VOC2012"
    )
    code, printed, _ = tool("check_dataset", "voc21", "--data", tmp_path / "data")
    assert code == 1 and "The label 0 never occurs" in printed


def test_the_command_line(prepared, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / "tools/check_dataset.py"), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    done = run("voc21", "--data", str(prepared("voc21")))
    assert (
        done.returncode == 1
        and "3 images, but the published split has 1449" in done.stdout
        and "voc21: 3 images, 1 problem" in done.stdout
    )
    for arguments in (["voc22"], ["voc21", "--data", str(tmp_path)]):
        done = run(*arguments)
        assert (
            done.returncode == 2
            and done.stderr.startswith("error: ")
            and "Traceback" not in done.stderr
        )
