"""Each dataset from its owners' files: prepared, checked and compared pixel by pixel."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from owners import SHIPPED, pack
from PIL import Image

from sfp.datasets.layouts import LAYOUTS
from sfp.datasets.preparation import RECIPES
from sfp.datasets.preparation.context import decode_mask


def hashes(folder: Path) -> dict[str, tuple[str, int]]:
    """Content and time of each file."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {
        str(p): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns) for p in files
    }


def command_line(name: str, *arguments: object) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / f"tools/{name}.py"), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def bilinear(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Between the four nearest pixel centres."""

    def along(old: int, new: int):
        place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.minimum(place.astype(int), old - 2)
        return low, place - low

    (y, dy), (x, dx) = along(pixels.shape[0], height), along(pixels.shape[1], width)
    dy, dx, pixels = dy[:, None, None], dx[None, :, None], pixels.astype(float)
    upper = pixels[y][:, x] * (1 - dx) + pixels[y][:, x + 1] * dx
    lower = pixels[y + 1][:, x] * (1 - dx) + pixels[y + 1][:, x + 1] * dx
    return upper * (1 - dy) + lower * dy


def test_all_datasets_have_a_layout_and_a_recipe():
    assert set(LAYOUTS) == set(RECIPES) == set(SHIPPED)


@pytest.mark.parametrize(
    "config", sorted((ROOT / "configs").glob("cfg_*.py")), ids=lambda path: path.stem
)
def test_the_configs_read_where_preparation_writes(config, tmp_path, monkeypatch):
    """The configs state paths for mmengine, the layouts for preparation and check."""
    from mmengine.config import Config

    layout = LAYOUTS.get(config.stem.removeprefix("cfg_"))
    if layout is None:
        assert config.stem == "cfg_toyland"
        return
    monkeypatch.setenv("SFP_DATA", str(tmp_path))
    dataset = Config.fromfile(config).test_dataloader.dataset
    assert Path(dataset.data_root) == tmp_path / layout.root
    assert dataset.data_prefix == dict(img_path=layout.images, seg_map_path=layout.labels)
    assert dataset.get("ann_file") == layout.split


@pytest.mark.parametrize("name", SHIPPED)
def test_prepare_and_check(name, tmp_path, tool):
    owners, out, layout = tmp_path / "owners", tmp_path / "data", LAYOUTS[name]
    shipped = SHIPPED[name](owners)
    before = hashes(owners)
    code, printed, error = tool(
        "prepare_dataset", name, "--source", *shipped.sources, "--out", out, "--workers", 1
    )
    assert (code, error) == (0, "") and printed.startswith(
        f"{name}: 3 images" if name not in ("context59", "context60") else f"{name}: 2 images"
    )
    root = out / layout.root
    for image, labels in shipped.labels.items():
        found = Image.open(layout.label(image, root))
        assert np.array_equal(np.asarray(found), labels), image
        assert np.asarray(found).dtype == (np.uint16 if layout.bits == 16 else np.uint8)
        photo, source = (
            Image.open(layout.image(image, root)),
            np.asarray(Image.open(shipped.images[image])),
        )
        assert photo.size == found.size
        if min(source.shape[:2]) > 512:
            assert (
                np.abs(np.asarray(photo) - bilinear(source, *labels.shape)).mean() < 2
            )  # JPEG's losses
        else:
            assert layout.image(image, root).read_bytes() == shipped.images[image].read_bytes()
    if layout.split:
        assert (root / layout.split).read_text().split() == sorted(shipped.labels)
    code, printed, _ = tool("check_dataset", name, "--data", out, "--subset", "--workers", 1)
    assert code == 0 and printed.splitlines()[-1].endswith("images, sound"), printed
    values, counts = np.unique(
        np.concatenate([labels.ravel() for labels in shipped.labels.values()]), return_counts=True
    )
    top = int(values[counts.argmax()])
    assert (
        f"{'ignore' if top == layout.ignore else top} {100 * counts.max() / counts.sum():6.2f}%"
        in printed
    )
    assert hashes(owners) == before

    # an interrupted run: some files are gone, one was being written, the list is not there yet
    after = hashes(root)
    victim, image = list(shipped.labels)[-1], next(iter(shipped.images))
    layout.label(victim, root).unlink()
    layout.image(image, root).unlink()
    leftover = layout.label(victim, root).with_name(
        f".x.{socket.gethostname()}-{2**22 + 1}-0123abcd.partial.png"
    )  # of no living process: beyond the largest number
    leftover.write_text("half")
    if layout.split:
        (root / layout.split).unlink()
    assert (
        tool("prepare_dataset", name, "--source", *shipped.sources, "--out", out, "--workers", 1)[0]
        == 0
    )
    again = hashes(root)
    assert {path: digest for path, (digest, _) in again.items()} == {
        path: digest for path, (digest, _) in after.items()
    }
    made = {
        str(layout.label(victim, root)),
        str(layout.image(image, root)),
        str(root / (layout.split or "")),
    }
    assert all(
        again[path] == after[path]
        for path in after
        if path not in made and not path.endswith("train.txt")
    )
    assert hashes(owners) == before


def test_context_has_the_training_images_too(tmp_path, tool):
    shipped = SHIPPED["context60"](tmp_path / "owners")
    assert (
        tool("prepare_dataset", "context60", "--source", *shipped.sources, "--out", tmp_path)[0]
        == 0
    )
    lists = tmp_path / "VOCdevkit/VOC2010/ImageSets/SegmentationContext"
    assert (lists / "train.txt").read_text().split() == ["2008_000001"]
    assert len(list((tmp_path / "VOCdevkit/VOC2010/SegmentationClassContext").iterdir())) == 3


def test_both_contexts_share_a_tree(tmp_path, tool):
    """The 459 classes need no list of their own after the 60; another list is refused."""
    first, second = SHIPPED["context60"](tmp_path / "a"), SHIPPED["context459"](tmp_path / "b")
    shutil.copy(
        tmp_path / "b/VOCdevkit/VOC2010/JPEGImages/2008_000002.jpg",
        tmp_path / "b/VOCdevkit/VOC2010/JPEGImages/2008_000003.jpg",
    )
    shutil.copy(tmp_path / "b/trainval/2008_000002.mat", tmp_path / "b/trainval/2008_000003.mat")
    for image in (tmp_path / "a/VOCdevkit/VOC2010/JPEGImages").iterdir():
        shutil.copy(image, tmp_path / "b/VOCdevkit/VOC2010/JPEGImages")
    assert (
        tool(
            "prepare_dataset", "context60", "--source", *first.sources, "--out", tmp_path / "data"
        )[0]
        == 0
    )
    code, _, error = tool(
        "prepare_dataset", "context459", "--source", *second.sources, "--out", tmp_path / "data"
    )
    assert code == 2 and "lists other images" in error
    assert (
        tool(
            "prepare_dataset",
            "context459",
            "--source",
            *second.sources[:2],
            "--out",
            tmp_path / "data",
        )[0]
        == 0
    )
    assert (
        len(list((tmp_path / "data/VOCdevkit/VOC2010/annotations_detectron2/pc459_val").iterdir()))
        == 2
    )


def archive(folder: Path, path: Path) -> Path:
    """A tar or zip of a folder's contents."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            for member in sorted(folder.rglob("*")):
                file.write(member, member.relative_to(folder))
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as file:
            for member in sorted(folder.iterdir()):
                file.add(member, member.name)
    return path


def test_the_real_command_lines_on_archives_in_place_and_with_two_workers(tmp_path):
    """40 images, more than one process does; two archives, both with a folder val2017."""
    rng = np.random.default_rng(0)
    for number in range(40):
        for folder in ("a/val2017", "b/val2017", "b/train2017"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(
            tmp_path / f"a/val2017/{number:012d}.jpg"
        )
        Image.fromarray(np.full((20, 30), number % 2 * 180, np.uint8)).save(
            tmp_path / f"b/val2017/{number:012d}.png"
        )
        Image.fromarray(np.full((20, 30), 12, np.uint8)).save(
            tmp_path / f"b/train2017/{number:012d}.png"
        )
    images, maps = (
        archive(tmp_path / "a", tmp_path / "val2017.zip"),
        archive(tmp_path / "b", tmp_path / "maps.tar.gz"),
    )
    done = command_line(
        "prepare_dataset",
        "coco_stuff164k",
        "--source",
        images,
        maps,
        "--out",
        tmp_path / "data",
        "--workers",
        2,
    )
    assert done.returncode == 0, done.stderr
    assert "coco_stuff164k: 40 images of 5000 published" in done.stdout and "100%" in done.stderr
    data = tmp_path / "data/coco_stuff164k"
    labels = np.asarray(Image.open(data / "annotations/val2017/000000000001_labelTrainIds.png"))
    assert labels.shape == (20, 30) and (labels == 169).all()
    assert not list((tmp_path / "data").glob(".unpacked*")) and not list(data.glob(".unfinished*"))
    done = command_line(
        "check_dataset", "coco_stuff164k", "--data", tmp_path / "data", "--workers", 2
    )
    assert (
        done.returncode == 1
        and "40 images, but the published split has 5000" in done.stdout
        and "1 problem" in done.stdout
    )
    # the objects' labels go into the same tree, which serves as the source of the images too
    before = hashes(data)
    done = command_line(
        "prepare_dataset",
        "coco_object",
        "--source",
        data,
        maps,
        "--out",
        tmp_path / "data",
        "--workers",
        2,
    )
    assert done.returncode == 0, done.stderr
    after = hashes(data)
    # the labels and what they were made from
    assert len(after) == len(before) + 41 and all(after[path] == before[path] for path in before)


def test_cityscapes_in_place(tmp_path, tool):
    """Labels go beside the owners' files, none of which changes."""
    SHIPPED["city_scapes"](tmp_path / "cityscapes")
    before = hashes(tmp_path)
    assert (
        tool(
            "prepare_dataset", "city_scapes", "--source", tmp_path / "cityscapes", "--out", tmp_path
        )[0]
        == 0
    )
    after = hashes(tmp_path)
    # the labels and what they were made from
    assert len(after) == len(before) + 4 and all(after[path] == before[path] for path in before)
    assert tool("check_dataset", "city_scapes", "--data", tmp_path, "--subset")[0] == 0


def other_image(shipped) -> None:
    """Another picture under the name of one, as a second release of a dataset has it."""
    path = shipped.images[min(shipped.images)]
    Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)


def prepared(tool, name, shipped, out) -> str:
    arguments = ("--source", *shipped.sources, "--out", out, "--workers", 1)
    return tool("prepare_dataset", name, *arguments)[2]


@pytest.mark.parametrize("name", SHIPPED)
def test_another_source_into_the_same_folder_is_refused(name, tmp_path, tool):
    first, second = SHIPPED[name](tmp_path / "a"), SHIPPED[name](tmp_path / "b")
    other_image(second)
    assert prepared(tool, name, first, tmp_path / "data") == ""
    before = hashes(tmp_path / "data")
    assert "made from another source" in prepared(tool, name, second, tmp_path / "data")
    assert hashes(tmp_path / "data") == before
    assert prepared(tool, name, first, tmp_path / "data") == ""  # the first one still goes on
    assert prepared(tool, name, second, tmp_path / "other") == ""


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("coco_stuff164k", "stuffthingmaps/val2017/000000000285.png"),
        ("context60", "trainval_merged.json"),
        ("context459", "trainval/2008_000001.mat"),
    ],
)
def test_a_failed_run_leaves_no_image_beside_anothers_label(name, broken, tmp_path, tool):
    """Half of the first source is there when it fails; the second one must not be mixed with it."""
    first, second = SHIPPED[name](tmp_path / "a"), SHIPPED[name](tmp_path / "b")
    other_image(second)
    path, layout = tmp_path / "a" / broken, LAYOUTS[name]
    if path.suffix == ".json":  # the last image's mask
        contents = json.loads(path.read_text())
        contents["annos_segmentation"][-1]["category_id"] = 3
        path.write_text(json.dumps(contents))
    else:
        path.write_bytes(b"broken")
    assert prepared(tool, name, first, tmp_path / "data")
    root = tmp_path / "data" / layout.root
    assert layout.image(min(first.images), root).is_file()
    assert "made from another source" in prepared(tool, name, second, tmp_path / "data")


def test_two_datasets_of_one_folder_share_one_source_of_images(tmp_path, tool):
    first, second = (SHIPPED["coco_stuff164k"](tmp_path / folder) for folder in "ab")
    other_image(second)
    assert prepared(tool, "coco_stuff164k", first, tmp_path / "data") == ""
    assert "made from another source" in prepared(tool, "coco_object", second, tmp_path / "data")
    assert prepared(tool, "coco_object", first, tmp_path / "data") == ""


def test_other_labels_for_the_same_images_are_refused(tmp_path, tool):
    first, second = (SHIPPED["coco_stuff164k"](tmp_path / folder) for folder in "ab")
    label = tmp_path / "b/stuffthingmaps/val2017/000000000285.png"
    Image.fromarray(np.zeros((60, 80), np.uint8)).save(label)
    assert prepared(tool, "coco_stuff164k", first, tmp_path / "data") == ""
    assert "made from another source" in prepared(tool, "coco_stuff164k", second, tmp_path / "data")


def test_a_tree_without_records(tmp_path, tool):
    """Linked files are compared; a label that was made is of nobody knows what."""
    shipped, root = SHIPPED["voc21"](tmp_path / "a"), tmp_path / "data/VOCdevkit/VOC2012"
    assert prepared(tool, "voc21", shipped, tmp_path / "data") == ""
    (root / ".sources_voc21").unlink()
    assert prepared(tool, "voc21", shipped, tmp_path / "data") == ""
    (root / ".sources_voc21").write_text("[")
    assert "is damaged" in prepared(tool, "voc21", shipped, tmp_path / "data")
    shipped, root = SHIPPED["coco_object"](tmp_path / "b"), tmp_path / "data/coco_stuff164k"
    assert prepared(tool, "coco_object", shipped, tmp_path / "data") == ""
    (root / ".sources_coco_object").unlink()
    assert "made from another source" in prepared(tool, "coco_object", shipped, tmp_path / "data")


def test_another_archive_of_one_name_is_unpacked_anew(tmp_path, tool):
    """What a failed run unpacked of the first is not taken for the second's: sizes agree."""
    folders = []
    for colour in (0, 1):
        shipped = SHIPPED["voc21"](tmp_path / str(colour))
        name = min(shipped.images)
        label = tmp_path / str(colour) / f"VOCdevkit/VOC2012/SegmentationClass/{name}.png"
        Image.fromarray(np.full((60, 80), colour, np.uint8)).save(label, compress_level=0)
        folders.append((tmp_path / str(colour), label))
    lists = tmp_path / "0/VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"
    names = lists.read_text()
    lists.write_text(names + "absent\n")
    tar = archive(folders[0][0], tmp_path / "VOC.tar")
    code, _, error = tool("prepare_dataset", "voc21", "--source", tar, "--out", tmp_path / "data")
    assert code == 2 and "lacks the image" in error
    tar.unlink()
    tar = archive(folders[1][0], tmp_path / "VOC.tar")
    assert tool("prepare_dataset", "voc21", "--source", tar, "--out", tmp_path / "data")[0] == 0
    made = tmp_path / "data/VOCdevkit/VOC2012/SegmentationClass" / folders[1][1].name
    assert made.read_bytes() == folders[1][1].read_bytes()


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (60, 80), (300, 3)])
@pytest.mark.parametrize("share", [0, 0.02, 0.5, 1])
def test_run_lengths(shape, share):
    mask = np.random.default_rng(0).random(shape) < share
    assert np.array_equal(decode_mask(pack(mask), *shape), mask)


def test_run_lengths_by_hand():
    expected = [[False, True, True], [False, True, False]]
    assert decode_mask([2, 3, 1], 2, 3).tolist() == decode_mask("231", 2, 3).tolist() == expected


@pytest.mark.parametrize(
    "counts", [[2, 3], [2, 3, 2], [2, -3, 7], ["a"], "23", "233", "P", "é", ""]
)
def test_broken_run_lengths(counts):
    """Too few or too many pixels, and what is no number; pycocotools alone crashes at the last."""
    with pytest.raises((ValueError, ArithmeticError)):
        decode_mask(counts, 2, 3)


class TestFaultsOfTheSource:
    """Each is one sentence with the file and what to do."""

    def prepared(self, tool, tmp_path, name, *sources) -> str:
        code, _, error = tool(
            "prepare_dataset",
            name,
            "--source",
            *sources,
            "--out",
            tmp_path / "data",
            "--workers",
            1,
        )
        assert code == 2
        return error

    def test_missing_things(self, tmp_path, tool):
        code, _, error = tool("prepare_dataset", "voc21", "--out", tmp_path)
        assert code == 2 and "There is no source: voc21 needs VOCtrainval_11-May-2012.tar" in error
        assert "does not exist" in self.prepared(tool, tmp_path, "voc21", tmp_path / "absent")
        assert "There is no VOCdevkit/VOC2012/JPEGImages" in self.prepared(
            tool, tmp_path, "voc21", tmp_path
        )
        shipped = SHIPPED["voc21"](tmp_path / "a")
        shipped.images["2007_000042"].unlink()
        assert "lacks the image" in self.prepared(tool, tmp_path, "voc21", *shipped.sources)
        (tmp_path / "a/VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").write_text("\n")
        assert "is empty" in self.prepared(tool, tmp_path, "voc21", *shipped.sources)
        assert not (tmp_path / "data").exists()  # nothing was begun
        assert "did you mean 'voc21'" in self.prepared(tool, tmp_path, "voc12", tmp_path)

    def test_wrong_labels(self, tmp_path, tool):
        shipped = SHIPPED["coco_stuff164k"](tmp_path / "a")
        path = tmp_path / "a/stuffthingmaps/val2017/000000000285.png"
        Image.fromarray(np.full((60, 80), 200, np.uint8)).save(path)
        assert (
            f"{path} has the label 200, which is none of the stuffthingmaps' ids"
            in self.prepared(tool, tmp_path, "coco_stuff164k", *shipped.sources)
        )
        assert (tmp_path / "data/coco_stuff164k/.unfinished_coco_stuff164k").is_file()
        code, printed, _ = tool(
            "check_dataset", "coco_stuff164k", "--data", tmp_path / "data", "--subset"
        )
        assert code == 1 and "was interrupted" in printed
        Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(path)
        assert "mode RGB" in self.prepared(tool, tmp_path, "coco_stuff164k", *shipped.sources)
        path.write_bytes(path.read_bytes()[:60])
        assert "can't be read" in self.prepared(tool, tmp_path, "coco_stuff164k", *shipped.sources)

    def test_context(self, tmp_path, tool):
        shipped = SHIPPED["context60"](tmp_path / "a")
        path = tmp_path / "a/trainval_merged.json"
        contents = json.loads(path.read_text())

        def given(text: str) -> str:
            path.write_text(text)
            return self.prepared(tool, tmp_path, "context60", *shipped.sources)

        assert "can't be read as json" in given("{")
        assert "lacks annos_segmentation" in given('{"images": []}')
        annotation = contents["annos_segmentation"][0]
        assert "the class 3 in 2008_000000" in given(
            json.dumps({**contents, "annos_segmentation": [{**annotation, "category_id": 3}]})
        )
        broken = {**annotation, "segmentation": {"counts": "0"}}
        assert "broken mask" in given(json.dumps({**contents, "annos_segmentation": [broken]}))
        for size in ((10**6, 10**6), (60, 81), (None, "x"), (-1, -1)):
            entry = contents["images"][0] | dict(zip(("height", "width"), size, strict=True))
            many = json.dumps({**contents, "images": [entry, *contents["images"][1:]]})
            assert f"has the size {size[1]} x {size[0]} for" in given(many)
        path.unlink()
        assert "no trainval_merged.json" in self.prepared(
            tool, tmp_path, "context60", *shipped.sources
        )

    def test_context459(self, tmp_path, tool):
        shipped = SHIPPED["context459"](tmp_path / "a")
        assert "no list of validation images" in self.prepared(
            tool, tmp_path, "context459", *shipped.sources[:2]
        )
        (tmp_path / "a/trainval/2008_000001.mat").write_bytes(b"no matrix")
        assert "2008_000001.mat can't be read" in self.prepared(
            tool, tmp_path, "context459", *shipped.sources
        )

    def test_archives(self, tmp_path, tool):
        (tmp_path / "evil").write_text("x")
        for name in ("../evil.jpg", "/evil.jpg", "a/../../evil.jpg"):
            with zipfile.ZipFile(tmp_path / "bad.zip", "w") as file:
                file.write(tmp_path / "evil", "VOCdevkit/VOC2012/JPEGImages/1.jpg")
                file.writestr(zipfile.ZipInfo(name), "x")
            assert "would leave the folder" in self.prepared(
                tool, tmp_path, "voc21", tmp_path / "bad.zip"
            ), name
            with tarfile.open(tmp_path / "bad.tar", "w") as file:
                info = tarfile.TarInfo(name)
                info.size = 1
                file.addfile(info, (tmp_path / "evil").open("rb"))
            assert "would leave the folder" in self.prepared(
                tool, tmp_path, "voc21", tmp_path / "bad.tar"
            ), name
        with tarfile.open(tmp_path / "link.tar", "w") as file:
            info = tarfile.TarInfo("VOCdevkit/VOC2012/JPEGImages/1.jpg")
            info.type, info.linkname = tarfile.SYMTYPE, str(tmp_path / "evil")
            file.addfile(info)
        assert "has a link" in self.prepared(tool, tmp_path, "voc21", tmp_path / "link.tar")
        (tmp_path / "broken.zip").write_bytes(b"PK no zip")
        assert "can't be unpacked" in self.prepared(
            tool, tmp_path, "voc21", tmp_path / "broken.zip"
        )
        assert not list(tmp_path.rglob("evil.jpg"))

    def test_an_out_that_is_a_file(self, tmp_path, tool):
        shipped = SHIPPED["ade20k"](tmp_path / "a")
        (tmp_path / "data").write_text("")
        assert "choose another folder with --out" in self.prepared(
            tool, tmp_path, "ade20k", *shipped.sources
        )
