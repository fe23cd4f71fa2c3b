"""VOC and ADE trees as their owners lay them out: sizes, palettes, background and ignore labels are read right."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from sfp.plugin import require_mmseg

REAL = ROOT.parent / "shared/real_data"


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """One made-up photograph in each layout, 50x33 and 41x64 pixels, every label once."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    voc, ade = root / "VOCdevkit/VOC2012", root / "ADEChallengeData2016"
    for folder in (voc / "JPEGImages", voc / "SegmentationClass", voc / "ImageSets/Segmentation"):
        folder.mkdir(parents=True)
    for folder in (ade / "images/validation", ade / "annotations/validation"):
        folder.mkdir(parents=True)
    labels = np.resize(np.array([*range(21), 255], np.uint8), (33, 50))
    palette = Image.fromarray(labels, "P")
    palette.putpalette(rng.integers(0, 256, 768, np.uint8).tolist())
    palette.save(voc / "SegmentationClass/2007_000001.png")
    Image.fromarray(rng.integers(0, 256, (33, 50, 3), np.uint8)).save(voc / "JPEGImages/2007_000001.jpg")
    (voc / "ImageSets/Segmentation/val.txt").write_text("2007_000001\n")
    grey = np.resize(np.arange(151, dtype=np.uint8), (64, 41))
    Image.fromarray(grey).save(ade / "annotations/validation/ADE_val_00000001.png")
    Image.fromarray(rng.integers(0, 256, (64, 41, 3), np.uint8)).save(ade / "images/validation/ADE_val_00000001.jpg")
    return root, labels, grey


def load(name: str, data, monkeypatch) -> list:
    """The items of a config's dataset, through its own pipeline."""
    require_mmseg()
    from mmengine.config import Config
    from mmengine.registry import init_default_scope
    from mmseg.registry import DATASETS

    monkeypatch.setenv("SFP_DATA", str(data))
    cfg = Config.fromfile(ROOT / f"configs/cfg_{name}.py")
    init_default_scope("mmseg")
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    names = (ROOT / f"configs/cls_{name}.txt").read_text().splitlines()
    assert len(names) == len(dataset.metainfo["classes"])
    return [dataset[i] for i in range(len(dataset))]


def truth(item) -> np.ndarray:
    return item["data_samples"].gt_sem_seg.data[0].numpy()


def test_voc21(trees, monkeypatch):
    root, labels, _ = trees
    (item,) = load("voc21", root, monkeypatch)
    assert np.array_equal(truth(item), labels)
    assert item["data_samples"].ori_shape == (33, 50) and item["inputs"].shape == (3, 336, 509)


def test_voc20_ignores_background_and_shifts_down(trees, monkeypatch):
    root, labels, _ = trees
    (item,) = load("voc20", root, monkeypatch)
    expected = np.where(labels == 0, 255, np.where(labels == 255, 255, labels - 1))
    assert np.array_equal(truth(item), expected)


def test_ade20k(trees, monkeypatch):
    root, _, grey = trees
    (item,) = load("ade20k", root, monkeypatch)
    assert np.array_equal(truth(item), np.where(grey == 0, 255, grey - 1))
    assert item["inputs"].shape == (3, 524, 336)


def test_the_names_files():
    """methods.md 3.5: 30 queries for voc20, 56 for voc21, SFP's "people", ship and table."""
    lines = (ROOT / "configs/cls_voc21.txt").read_text().splitlines()
    assert sum(len(line.split(", ")) for line in lines) == 56
    assert lines[1:] == (ROOT / "configs/cls_voc20.txt").read_text().splitlines()
    assert lines[4] == "ship" and lines[11] == "table" and lines[15].startswith("people, people in shirt")
    assert (ROOT / "configs/cls_ade20k.txt").read_text().splitlines()[7] == "bed"


@pytest.mark.skipif(not REAL.is_dir(), reason="the six real photographs are not free and not in the repository")
@pytest.mark.parametrize(("name", "sizes"), [("voc21", {(338, 500), (375, 500)}), ("ade20k", {(512, 683), (364, 500), (300, 400)})])
def test_real_photographs(name, sizes, monkeypatch):
    items = load(name, REAL, monkeypatch)
    assert len(items) == 3
    assert {item["data_samples"].ori_shape for item in items} == sizes
    found = set(np.unique(np.concatenate([truth(item).ravel() for item in items])).tolist())
    # person, bottle, chair, sofa, bus, car; wall, building, sky, tree, road, grass, sidewalk, plant, car, escalator
    expected = {0, 5, 6, 7, 9, 15, 18, 255} if name == "voc21" else {0, 1, 2, 4, 6, 9, 11, 17, 20, 96, 255}
    assert found >= expected
