"""``Segmentation``: drawn, asked, saved and loaded."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

import sfp
from sfp.datasets import toyland
from sfp.exports.png import read_provenance
from sfp.result import compare, palette_for

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
    assert labels.getpalette()[: 3 * len(NAMES)] == result.palette.ravel().tolist()
    assert read_provenance(path) == result.protocol
    rows = (tmp_path / "labels.csv").read_text().splitlines()
    assert rows[0] == "index,name,red,green,blue,pixels" and len(rows) == 1 + len(NAMES)
    for index, row in enumerate(rows[1:]):
        number, name, *colour, pixels = row.split(",")
        assert (int(number), name) == (index, result.names[index])
        assert [int(part) for part in colour] == result.palette[index].tolist()
        assert int(pixels) == (result.labels == index).sum()


def test_label_png_of_many_names(result, tmp_path):
    names = tuple(f"thing {number}" for number in range(300))
    many = sfp.Segmentation(result.labels + 290, names, None, result.image, {})
    assert np.array_equal(np.asarray(Image.open(many.save(tmp_path / "labels.png"))), many.labels)


def test_overlay(result, tmp_path):
    height, width = result.labels.shape
    drawn = np.asarray(result.overlay(), int)
    assert drawn.shape[1] == width and drawn.shape[0] > height  # with the legend below
    bare = result.overlay(legend=False)
    assert bare.size == (width, height) and np.array_equal(drawn[:height], bare)
    for name in result.areas:  # a swatch of each name that occurs, of no other
        colour = result.palette[result.names.index(name)]
        assert (drawn[height:] == colour).all(-1).sum() > 30, name
    kept = Image.open(result.save(tmp_path / "overlay.jpg"))
    assert np.abs(np.asarray(kept, int) - drawn).mean() < 4  # JPEG's losses


def test_overlay_blends_by_alpha(result):
    full, none = (np.asarray(result.overlay(alpha, legend=False)) for alpha in (1.0, 0.0))
    assert np.array_equal(full, result.palette[result.labels]) and np.array_equal(
        none, result.image
    )
    half = np.asarray(result.overlay(0.5, legend=False), int)
    assert np.abs(half - (full / 2 + none / 2)).max() <= 1


def test_a_name_that_does_not_occur_has_no_swatch():
    labels, image = np.zeros((60, 200), np.int64), np.zeros((60, 200, 3), np.uint8)
    drawn = np.asarray(sfp.Segmentation(labels, ("sea", "boat"), None, image, {}).overlay())
    sea, boat = ((drawn == colour).all(-1).sum() for colour in palette_for(["sea", "boat"]))
    assert sea > 30 and boat == 0


def test_the_background_is_grey_and_leaves_the_other_colours(result):
    with_background = palette_for(["rest", *result.names], "rest")
    assert np.array_equal(with_background[1:], result.palette) and np.ptp(with_background[0]) < 10
    assert np.array_equal(
        palette_for(["background", "cat", "dog"])[1:], palette_for(["cat", "dog"])
    )
    assert len(np.unique(palette_for([f"thing {i}" for i in range(150)]), axis=0)) == 150


def test_colours_of_few_names_differ_well():
    colours = palette_for(["background", *(f"thing {i}" for i in range(11))]).astype(int)
    apart = np.abs(colours[:, None] - colours[None]).sum(-1) + 999 * np.eye(12, dtype=int)
    assert apart.min() > 75


def test_a_narrow_picture_has_a_readable_legend(result):
    narrow = sfp.Segmentation(result.labels[:, :5], result.names, None, result.image[:, :5], {})
    drawn = np.asarray(narrow.overlay())
    height = len(result.labels)
    assert drawn.shape[1] > 40 and np.array_equal(
        drawn[:height, :5], np.asarray(narrow.overlay(legend=False))
    )
    assert (drawn[height:].sum(-1) < 200).sum() > 20  # text


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
        mask = coco_mask.decode(annotation["segmentation"]).astype(bool)
        assert mask.sum() == annotation["area"]
        x, y, w, h = annotation["bbox"]
        assert (
            mask[y : y + h, x : x + w].sum() == annotation["area"]
            and mask[:, x].any()
            and mask[y + h - 1].any()
        )
        labels[mask] = annotation["category_id"] - 1
    assert np.array_equal(labels, result.labels)


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
    """Picture and results from left to right, titles above, a legend of all names below."""
    names = ("sky", "a name of its own")
    labels = np.zeros_like(result.labels)
    labels[:, :50] = 1
    other = sfp.Segmentation(labels, names, None, np.zeros_like(result.image), {})
    strip = np.asarray(compare({"one": result, "two": other}, height=120), int)
    sky, own = (np.round(0.55 * palette_for(names)[i]).astype(int) for i in (0, 1))
    whole = (np.abs(strip - sky) <= 3).all(-1)  # the other's overlay on black
    edge = (np.abs(strip - own) <= 3).all(-1)
    height, width = result.labels.shape
    assert whole[:, strip.shape[1] * 2 // 3 :].sum() > 0.7 * 120 * 120 * width / height
    assert np.argwhere(edge)[:, 1].min() > strip.shape[1] * 0.6 and edge.sum() > 120 * 10
    above = strip[: np.argwhere(whole | edge)[:, 0].min() - 2].sum(-1) < 300
    for third in np.array_split(above, 3, axis=1):  # "image", "one", "two"
        assert 10 < third.sum() < 500
    below = strip[np.argwhere(whole)[:, 0].max() + 2 :]
    for name, colour in zip(names, palette_for(names), strict=True):
        assert (below == colour).all(-1).sum() > 30, name


def test_mistakes(result, tmp_path):
    with pytest.raises(sfp.SFPError, match=r"\.gif"):
        result.save(tmp_path / "labels.gif")
    (tmp_path / "file").write_text("")
    with pytest.raises(sfp.SFPError, match="can't be written"):
        result.save(tmp_path / "file" / "labels.png")
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
