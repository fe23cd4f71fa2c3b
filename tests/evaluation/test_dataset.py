"""What an evaluation must see in names, images and labels before it prints a figure."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from sfp.commands.evaluate import _of_shift
from sfp.datasets import toyland
from sfp.errors import SFPError
from sfp.evaluation.dataset import check_names
from sfp.pipeline import Vocabulary

CLASSES = ("sky", "Sea_water", "car", "traffic-light", "boat")
QUICK = (
    "model.clip=Toyland", "model.pretrained=toyland", "model.method=CLIP", "settings=common",
    "model.prompts=photo", "short_side=64", "model.window=64", "model.stride=64",
    "test_dataloader.num_workers=0",
)  # fmt: skip


class TestNames:
    @pytest.mark.parametrize(
        "lines",
        [
            ["sky", "sea water", "car", "traffic light", "boat"],
            ["heaven", "ocean", "automobile, vehicle", "signal", "ship"],  # all of them synonyms
            ["SKY", "ocean, sea-water", "car, boat", "traffic-light", "boat"],  # one word twice
            ["background, sky, car", "sea water", "car", "signal", "ship"],
            ["heaven, boat", "sea water", "car", "signal", "boat, ship"],
        ],
    )
    def test_other_words_for_the_same_classes_are_taken(self, lines):
        vocabulary = Vocabulary.from_names([line.split(", ") for line in lines])
        check_names(vocabulary, CLASSES, "Made")

    @pytest.mark.parametrize(
        ("lines", "word", "line", "other"),
        [
            (["sky", "car", "sea water", "traffic light", "boat"], "car", 2, 3),
            (["sky", "sea water", "CAR", "boat", "Traffic_Light"], "boat", 4, 5),
            (["boat", "sky", "sea water", "car", "traffic light"], "boat", 1, 5),
            (["sky", "car", "automobile", "signal", "boat"], "car", 2, 3),
            (["sky", "ocean", "ship, boat", "signal", "automobile, car"], "boat", 3, 5),
            (["sky", "car, sea water", "automobile", "signal", "boat"], "car", 2, 3),
            (["ﬂag", "sky", "car", "signal", "boat"], "sky", 2, 1),
        ],
    )
    def test_lines_in_another_order_are_refused(self, lines, word, line, other):
        vocabulary = Vocabulary.from_names([names.split(", ") for names in lines])
        with pytest.raises(SFPError) as caught:
            check_names(vocabulary, CLASSES, "Made")
        for part in (f"{word!r} in line {line}", repr(CLASSES[line - 1]), f"in line {other}"):
            assert part in str(caught.value)

    def test_all_names_files_that_come_with_the_configs_are_taken(self):
        from mmseg.registry import DATASETS

        from sfp.evaluation.config import read_config

        for config in sorted((ROOT / "configs").glob("cfg_*.py")):
            cfg = read_config(config, [])
            dataset = DATASETS.get(cfg.test_dataloader.dataset.type)
            known = dataset.METAINFO.get("classes")
            for file in sorted((ROOT / "configs").glob(f"cls_{cfg.dataset}*.txt")):
                vocabulary = Vocabulary.from_file(file, cfg.model.get("name_separator", ", "))
                if known:
                    check_names(vocabulary, known, cfg.dataset)

    @pytest.mark.parametrize("program", ["test", "compare_names", "probe_layers"])
    def test_programs_refuse_two_swapped_lines(self, program, tool, tmp_path):
        lines = (ROOT / "configs/cls_toyland.txt").read_text().splitlines()
        lines[1], lines[2] = lines[2], lines[1]
        (tmp_path / "names.txt").write_text("\n".join(lines))
        options = [
            f"model.name_path={tmp_path}/names.txt", "test_dataloader.dataset.scenes=1",
            f"test_dataloader.dataset.data_root={tmp_path}/toyland",
        ]  # fmt: skip
        config = ROOT / "configs/cfg_toyland.py"
        work = ["--work-dir", tmp_path / "work"] if program == "test" else []
        code, _, error = tool(program, config, *work, "--cfg-options", *QUICK[2:], *options)
        assert code == 2 and "'sea' in line 2" in error and "'grass'" in error, error


def grey_png(labels: np.ndarray, bits: int) -> bytes:
    """A grey PNG with few bits a pixel, which Pillow doesn't write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    height, width = labels.shape
    parts = labels.reshape(height, -1, 8 // bits).astype(int)
    packed = (parts << np.arange(8 - bits, -1, -bits)).sum(-1).astype(np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def saved(labels: np.ndarray, form: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(labels).save(file, form, **options)
    return file.getvalue()


def few(labels: np.ndarray) -> np.ndarray:
    """Labels 0 to 3, which stay classes when they are multiplied."""
    return (labels % 4).astype(np.uint8)


def bright_is_low(labels: np.ndarray) -> bytes:
    """A TIFF whose grey goes from white to black: readers turn it round."""
    data = bytearray(saved(few(labels), "TIFF"))
    entries = int.from_bytes(data[4:8], "little")
    for number in range(int.from_bytes(data[entries : entries + 2], "little")):
        place = entries + 2 + 12 * number
        if int.from_bytes(data[place : place + 2], "little") == 262:
            data[place + 8] = 0
    return bytes(data)


def orientation(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


# a label file's bytes of labels (H, W), and what is said of it
INEXACT = {
    "grey of 4 bits": (lambda labels: grey_png(few(labels), 4), "grey of the kind L;4"),
    "grey of 2 bits": (lambda labels: grey_png(few(labels), 2), "grey of the kind L;2"),
    "JPEG 2000": (lambda labels: saved(few(labels), "JPEG2000"), "is a JPEG2000 inside"),
    "JPEG": (lambda labels: saved(few(labels), "JPEG"), "is a JPEG inside"),
    "WebP": (lambda labels: saved(few(labels), "WEBP"), "is a WEBP inside"),
    "GIF": (lambda labels: saved(few(labels), "GIF"), "is a GIF inside"),
    "PGM": (lambda labels: saved(few(labels), "PPM"), "is a PPM inside"),
    "TIFF packed by JPEG": (
        lambda labels: saved(few(labels), "TIFF", compression="jpeg"),
        "is packed by jpeg",
    ),
    "TIFF from white to black": (bright_is_low, "grey of the kind L;I"),
    "colours": (lambda labels: saved(np.dstack([few(labels)] * 3), "PNG"), "has colours (RGB)"),
}


@pytest.fixture
def voc(tmp_path):
    """Two pictures of 64x80 in VOC 2012's layout; returns their labels."""
    root = tmp_path / "VOCdevkit/VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    labels = (np.arange(64 * 80).reshape(64, 80) // 300).astype(np.uint8)
    for name in "ab":
        picture = Image.fromarray(toyland.make_scene("tune", 0).image[:64, :80])
        picture.save(root / f"JPEGImages/{name}.jpg")
        Image.fromarray(labels).save(root / f"SegmentationClass/{name}.png")
    (root / "ImageSets/Segmentation/val.txt").write_text("a\nb\n")
    return labels


@pytest.fixture
def evaluated(tool, tmp_path, monkeypatch):
    """Evaluate a dataset in the test's folder, and check it: both programs' code and words."""
    monkeypatch.setenv("SFP_DATA", str(tmp_path))

    def run(name: str, *options: str) -> tuple[int, str, int, str]:
        config, work = ROOT / f"configs/cfg_{name}.py", tmp_path / "work"
        given = ("--work-dir", work, "--cfg-options", *QUICK, *options)
        code, printed, error = tool("test", config, *given)
        checked, found, _ = tool(
            "check_dataset", name, "--data", tmp_path, "--subset", "--workers", 1
        )
        return code, error or printed, checked, found

    return run


@pytest.mark.parametrize("kind", INEXACT)
def test_labels_that_are_not_read_exactly(kind, voc, evaluated, tmp_path):
    make, words = INEXACT[kind]
    path = tmp_path / "VOCdevkit/VOC2012/SegmentationClass/b.png"
    path.write_bytes(make(voc))
    code, error, checked, found = evaluated("voc21")
    assert code == 2 and f"The label {path}" in error and words in error, error
    assert checked == 1 and f"The label {path} " in found and words in found, found


@pytest.mark.parametrize(
    "make",
    [
        lambda labels: saved(labels, "PNG"),
        lambda labels: saved(labels, "TIFF", compression="tiff_lzw"),
        lambda labels: saved(few(labels) > 0, "PNG"),
        lambda labels: saved(labels, "PNG", bits=8),
    ],
)
def test_labels_that_are_read_exactly(make, voc, evaluated, tmp_path):
    (tmp_path / "VOCdevkit/VOC2012/SegmentationClass/b.png").write_bytes(make(voc))
    code, printed, *_ = evaluated("voc21")
    assert code == 0, printed


@pytest.mark.parametrize("loader", ["LoadLabels", "LoadAnnotations"])
@pytest.mark.parametrize("number", [2, 3, 6])
def test_an_orientation_that_turns_the_image_alone(number, loader, voc, evaluated, tmp_path):
    path = tmp_path / "VOCdevkit/VOC2012/JPEGImages/a.jpg"
    Image.open(path).save(path, exif=orientation(number))
    code, error, checked, found = evaluated(
        "voc21", f"test_dataloader.dataset.pipeline.2.type={loader}"
    )
    words = f"The image {path} has the EXIF orientation {number}"
    assert code == 2 and words in error, error
    assert checked == 1 and words in found


def test_the_usual_orientation_is_taken(voc, evaluated, tmp_path):
    path = tmp_path / "VOCdevkit/VOC2012/JPEGImages/a.jpg"
    Image.open(path).save(path, exif=orientation(1))
    assert evaluated("voc21")[0] == 0


@pytest.fixture
def ade(tmp_path):
    """Three pictures in ADE20K's layout; returns the folder."""
    root = tmp_path / "ADEChallengeData2016"
    labels = (np.arange(64 * 80).reshape(64, 80) // 34).astype(np.uint8)  # 0 to 150
    for part, ending, pixels in (
        ("images", ".jpg", toyland.make_scene("tune", 0).image[:64, :80]),
        ("annotations", ".png", labels),
    ):
        (root / part / "validation").mkdir(parents=True)
        for name in "abc":
            Image.fromarray(pixels).save(root / part / f"validation/{name}{ending}")
    return root


@pytest.mark.parametrize("ending", [".JPG", ".jpeg", ".png", ".Jpg"])
def test_images_of_another_ending_are_not_left_out(ending, ade, evaluated):
    path = ade / f"images/validation/b{ending}"
    (ade / "images/validation/b.jpg").rename(path)
    code, error, checked, found = evaluated("ade20k")
    assert code == 2 and f"{path} of ADE20KDataset would be left out" in error, error
    assert checked == 1 and f"The stray file {path} is no image *.jpg; " in found


def shift(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        labels = np.asarray(Image.open(path)).astype(int)
        Image.fromarray(((labels - 1) % 256).astype(np.uint8)).save(path)


def test_labels_that_were_reduced_before(ade, evaluated):
    shift(ade / "annotations")
    code, error, checked, found = evaluated("ade20k")
    assert code == 2 and "a.png has the value 255" in error and "reduced by one before" in error
    assert checked == 1 and "shifted down by one" in found


def test_labels_reduced_before_that_may_have_255_are_told_by_absent_classes(
    voc, evaluated, tmp_path
):
    folder = tmp_path / "VOCdevkit/VOC2012/SegmentationClass"
    for path in folder.iterdir():
        labels = np.minimum(voc + 4, 20)  # all classes from bottle on
        labels[:40] = 0
        Image.fromarray(labels).save(path)
    shift(folder)
    code, printed, checked, found = evaluated("voc20")
    assert code == 0 and "No label is of the classes" in printed
    assert (
        "tvmonitor; if the images should have them, labels may be shifted: run sfp check voc20"
        in printed
    )
    assert checked == 1 and "% of all pixels are to be ignored" in found
    result = json.loads((tmp_path / "work/results.json").read_text())
    assert result["absent"][-1] == "tvmonitor" and "train" not in result["absent"]


@pytest.mark.parametrize(
    ("absent", "name", "told"),
    [
        (["sea"], "toyland", ""),
        (["sky"], "toyland", ""),
        (["boat"], None, "; if the images should have it, labels may be shifted by one"),
        (["car", "boat"], None, ""),
        (["car"], None, ""),
        (["car"], "voc21", ""),
        (["car", "boat"], "voc21", "run sfp check voc21"),
    ],
)
def test_absent_classes_are_blamed_on_a_shift_where_it_is_likely(absent, name, told):
    words = _of_shift(absent, CLASSES, name)
    assert words.endswith(told) and bool(words) == bool(told)


def test_labels_that_are_all_ignored(voc, evaluated, tmp_path):
    for path in (tmp_path / "VOCdevkit/VOC2012/SegmentationClass").iterdir():
        Image.fromarray(np.full_like(voc, 255)).save(path)
    code, error, checked, found = evaluated("voc21")
    assert code == 2 and "No pixel is evaluated" in error
    assert not (tmp_path / "work/results.json").exists()
    assert checked == 1 and "Every pixel of voc21 is to be ignored" in found


def test_another_ignored_label_than_the_datasets(voc, evaluated):
    code, error, *_ = evaluated("voc21", "test_evaluator.ignore_index=0")
    assert (
        code == 2 and "test_evaluator.ignore_index is 0, but that of PascalVOCDataset 255" in error
    )
