"""The built-in scenes: the same everywhere, labelled as drawn, laid out like PASCAL VOC."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from PIL import Image

from sfp.datasets import toyland


def test_a_scene_is_a_function_of_split_and_number():
    one, again = toyland.make_scene("val", 3), toyland.make_scene("val", 3)
    assert np.array_equal(one.image, again.image) and np.array_equal(one.labels, again.labels)
    for split, index in (("val", 4), ("train", 3), ("tune", 3)):
        other = toyland.make_scene(split, index)
        assert one.image.shape != other.image.shape or not np.array_equal(one.image, other.image)


def test_labels_are_the_committed_ones():
    """Labels don't depend on the machine: the numbers of the README stand on them."""
    digest = hashlib.sha256()
    for index in range(5):
        digest.update(toyland.make_scene("val", index).labels.tobytes())
    assert digest.hexdigest()[:16] == "afaad5eb3820cd18"


def test_scenes_are_larger_than_a_window_of_both_orientations_and_hold_all_classes():
    scenes = [toyland.make_scene("val", index) for index in range(40)]
    assert all(min(scene.labels.shape) > 224 for scene in scenes)
    assert {scene.labels.shape[0] > scene.labels.shape[1] for scene in scenes} == {True, False}
    assert set(np.unique(np.concatenate([scene.labels.ravel() for scene in scenes]))) == set(
        range(16)
    )


def test_things_stand_in_their_boxes():
    for index in range(10):
        scene = toyland.make_scene("train", index)
        for label, (x0, y0, x1, y1) in scene.things:
            assert label >= 6
            assert (scene.labels[y0:y1, x0:x1] == label).mean() > 0.05


def test_voc_layout(tmp_path):
    listing = toyland.write_split(tmp_path, "val", 2)
    assert listing.read_text() == "val_00000\nval_00001\n"
    scene = toyland.make_scene("val", 1)
    labels = Image.open(tmp_path / "SegmentationClass/val_00001.png")
    assert labels.mode == "P" and np.array_equal(np.asarray(labels), scene.labels)
    assert tuple(labels.getpalette()[:3]) == toyland.PALETTE[0]
    picture = np.asarray(Image.open(tmp_path / "JPEGImages/val_00001.jpg").convert("RGB"), int)
    assert np.abs(picture - scene.image).mean() < 4
    first = (tmp_path / "JPEGImages/val_00000.jpg").stat().st_mtime_ns
    toyland.write_split(tmp_path, "val", 3)
    assert (tmp_path / "JPEGImages/val_00000.jpg").stat().st_mtime_ns == first
    assert not list(tmp_path.rglob("*.partial*"))


def test_unknown_split():
    with pytest.raises(ValueError, match="no split 'test'"):
        toyland.make_scene("test", 0)
