"""``Segmentation``: drawn, asked, saved and loaded."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import sfp
from sfp.datasets import toyland
from sfp.result import compare, palette_for, read_card
from sfp.run_length import decode_mask, encode_mask, pack_counts, unpack_counts

NAMES = ["sky", ["sea", "ocean"], "house", "boat"]


@pytest.fixture(scope="module")
def result(toyland_clip):
    return sfp.Segmenter("SFP", toyland_clip)(toyland.make_scene("val", 0).image, NAMES)


def without_scores(result):
    return sfp.Segmentation(result.labels, result.names, None, result.image, result.protocol)


def test_label_png(result, tmp_path):
    path = result.save(tmp_path / "labels.png")
    labels = Image.open(path)
    assert np.array_equal(np.asarray(labels), result.labels)
    assert tuple(labels.getpalette()[:3]) == toyland.PALETTE[0]
    assert read_card(path) == result.protocol


def test_label_png_of_many_names(result, tmp_path):
    names = tuple(f"thing {number}" for number in range(300))
    many = sfp.Segmentation(result.labels + 290, names, None, result.image, {})
    assert np.array_equal(np.asarray(Image.open(many.save(tmp_path / "labels.png"))), many.labels)


def test_overlay(result, tmp_path):
    height, width = result.labels.shape
    overlay = Image.open(result.save(tmp_path / "overlay.jpg"))
    assert overlay.width == width and overlay.height > height  # with the legend below
    assert result.overlay(legend=False).size == (width, height)
    full = np.asarray(result.overlay(alpha=1.0, legend=False))
    assert np.array_equal(full, result.palette[result.labels])


def test_the_background_is_grey_and_leaves_the_other_colours(result):
    with_background = palette_for(["rest", *result.names], "rest")
    assert np.array_equal(with_background[1:], result.palette) and np.ptp(with_background[0]) < 10
    assert np.array_equal(
        palette_for(["background", "cat", "dog"])[1:], palette_for(["cat", "dog"])
    )
    assert len(np.unique(palette_for([f"thing {i}" for i in range(150)]), axis=0)) == 150


def test_a_narrow_picture_has_a_readable_legend(result):
    narrow = sfp.Segmentation(result.labels[:, :5], result.names, None, result.image[:, :5], {})
    assert narrow.overlay().width > 40


@pytest.mark.parametrize("kept", [True, False])
def test_npz_round_trip(kept, result, tmp_path):
    result = result if kept else without_scores(result)
    loaded = sfp.Segmentation.load(result.save(tmp_path / "all.npz"))
    assert loaded == result and loaded.labels.dtype == np.int64
    assert loaded != sfp.Segmentation(
        result.labels, result.names, result.scores, result.image, {"method": "another"}
    )
    assert loaded != (without_scores(result) if kept else "something else")


def test_coco_masks(result, tmp_path):
    made = json.loads(result.save(tmp_path / "masks.json").read_text())
    height, width = result.labels.shape
    assert [category["name"] for category in made["categories"]] == list(result.names)
    assert made["info"]["protocol"] == result.protocol
    labels = np.full(result.labels.shape, -1)
    for annotation in made["annotations"]:
        assert annotation["segmentation"]["size"] == [height, width]
        mask = decode_mask(annotation["segmentation"]["counts"], height, width)
        assert mask.sum() == annotation["area"]
        x, y, w, h = annotation["bbox"]
        assert (
            mask[y : y + h, x : x + w].sum() == annotation["area"]
            and mask[:, x].any()
            and mask[y + h - 1].any()
        )
        labels[mask] = annotation["category_id"]
    assert np.array_equal(labels, result.labels)


def test_run_lengths_come_back():
    rng = np.random.default_rng(0)
    for shape in [(1, 1), (7, 5), (120, 90), (1, 400)]:
        for share in (0.0, 0.02, 0.5, 1.0):
            mask = rng.random(shape) < share
            assert np.array_equal(decode_mask(encode_mask(mask), *shape), mask)
    assert (
        pack_counts([1 + 1 * 1024, -2, 2, 1]) == "QP1N23"
    )  # by hand, as in tests/datasets/test_preparation.py
    counts = [0, 70000, 15, 16, 31, 32, 100000, 1]
    assert unpack_counts(pack_counts(counts)) == counts


def test_the_pixel_under_a_click(result):
    pixel = result.at(40.7, 30.2)
    assert pixel.name == result.names[result.labels[30, 40]] == next(iter(pixel.scores))
    assert pixel.scores == {
        name: float(result.scores[i, 30, 40]) for i, name in enumerate(result.names)
    }
    assert list(pixel.scores.values()) == sorted(pixel.scores.values(), reverse=True)
    assert without_scores(result).at(40, 30).scores == {}
    height, width = result.labels.shape
    for x, y in ((-1, 0), (0, height), (width, 0)):
        with pytest.raises(sfp.SFPError, match="no pixel"):
            result.at(x, y)


def test_areas_and_notebook(result):
    assert abs(sum(result.areas.values()) - 1) < 1e-9
    assert list(result.areas.values()) == sorted(result.areas.values(), reverse=True)
    assert result._repr_png_().startswith(b"\x89PNG")


def test_comparison_strip(result):
    strip = compare({"one": result, "two": result}, height=120)
    width = round(result.labels.shape[1] * 120 / result.labels.shape[0])
    assert strip.width >= 3 * width and strip.height > 120


def test_mistakes(result, tmp_path):
    with pytest.raises(sfp.SFPError, match=r"\.gif"):
        result.save(tmp_path / "labels.gif")
    with pytest.raises(sfp.SFPError, match="can't be written"):
        result.save(tmp_path / "absent" / "labels.png")
    with pytest.raises(sfp.SFPError, match="no result file"):
        sfp.Segmentation.load(tmp_path / "absent.npz")
    np.savez(tmp_path / "other.npz", labels=np.zeros(3))
    whole = result.save(tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "words.npz").write_text("nothing")
    np.save(tmp_path / "array.npy", np.zeros(3))
    for name in ("other.npz", "cut.npz", "words.npz", "array.npy"):
        with pytest.raises(sfp.SFPError, match="not a whole result"):
            sfp.Segmentation.load(tmp_path / name)
