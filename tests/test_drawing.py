"""Heat maps, marks, sheets and legends."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sfp.drawing import OUTLIER, Panel, Sheet, heat, heatmap, mark, mask_over, with_legend

PICTURE = np.full((32, 48, 3), 128, np.uint8)


def test_heat_grows_brighter():
    brightness = heat(np.linspace(0, 1, 50)).sum(-1)
    assert (np.diff(brightness) > 0).all()


def test_a_heatmap_follows_its_values():
    values = np.zeros((4, 6))
    values[1, 2], values[3, 5] = 1.0, 0.25
    drawn = np.asarray(heatmap(PICTURE, values), int).sum(-1)
    hot, mild, cold = drawn[12, 20], drawn[28, 44], drawn[2, 2]
    assert drawn.shape == (32, 48) and hot > mild > cold
    assert np.asarray(heatmap(PICTURE, values, power=0.5), int).sum(-1)[28, 44] > mild
    assert heatmap(PICTURE, values, height=64).size == (96, 64)
    heatmap(PICTURE, np.zeros((4, 6)))  # nothing to see is no error


def test_outliers_are_outlined():
    mask = np.zeros((4, 6), bool)
    mask[1, 2:4] = True
    drawn = np.asarray(mark(Image.new("RGB", (60, 40)), (4, 6), outliers=mask))
    lines = (drawn == OUTLIER).all(-1)
    assert (
        lines[10, 20:40].all()
        and lines[20, 20:40].all()
        and lines[10:20, 20].all()
        and lines[10:20, 40].all()
    )
    assert (
        not lines[11:20, 30].any() and not lines[:, 50].any()
    )  # no line between two outliers, none elsewhere


def test_a_mask_is_filled():
    mask = np.zeros((4, 6), bool)
    mask[0, 0] = True
    drawn = np.asarray(mask_over(PICTURE, mask, (255, 0, 0)), int)
    assert drawn[3, 3, 0] > 200 and np.ptp(drawn[20, 20]) == 0


@pytest.mark.parametrize("bar", [None, ("0", "1")])
def test_a_sheet_has_room_for_all(bar):
    rows = [
        [Panel(Image.new("RGB", (30, 20))), None, Panel(Image.new("RGB", (90, 20)), "a caption")]
    ] * 2
    titles = ["one", "a title wider than its pictures", "three"]
    sheet = Sheet(
        rows, titles, ["up", "down"], [(f"name {i}", (9, 9, 9)) for i in range(12)], bar, height=60
    ).draw()
    assert sheet.width > 90 + 150 + 270 and sheet.height > 2 * 60


def test_a_legend_wraps():
    few, many = (
        with_legend(Image.new("RGB", (200, 50)), [(f"name {i}", (0, 0, 0)) for i in range(n)])
        for n in (1, 12)
    )
    assert few.width == many.width == 200 and many.height > few.height + 40
    assert with_legend(Image.new("RGB", (3, 3)), []).size == (3, 3)
