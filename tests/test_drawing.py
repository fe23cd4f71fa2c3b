"""Heat maps, marks, sheets and legends: colours at places, text by comparing with and without."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sfp.drawing import (
    MASK,
    OUTLIER,
    add_legend,
    heatmap,
    mark,
    mask_over,
    panels,
    sheet,
    to_image,
    with_legend,
)

PICTURE = np.full((32, 48, 3), 128, np.uint8)
RED, GREEN, BLUE = (200, 0, 0), (0, 160, 0), (0, 0, 220)


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, int)


def has(picture: Image.Image | np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Where a picture has exactly a colour, (H, W) bool."""
    return (np.asarray(picture) == colour).all(-1)


def test_a_heatmap_grows_brighter_with_its_values():
    drawn = pixels(heatmap(PICTURE, np.arange(6.0)[None].repeat(4, 0)))
    brightness = drawn[16, 4::8].sum(-1)
    assert drawn.shape == (32, 48, 3) and (np.diff(brightness) > 0).all()
    assert np.ptp(drawn[:, 8:16], axis=(0, 1)).max() == 0  # one colour in a column of patches


def test_power_and_limits_of_a_heatmap():
    values = np.zeros((4, 6))
    values[1, 2], values[3, 5] = 1.0, 0.25
    plain, root = (pixels(heatmap(PICTURE, values, power=power)) for power in (1.0, 0.5))
    assert root[28, 44].sum() > plain[28, 44].sum() > plain[2, 2].sum()
    assert (root[12, 20] == plain[12, 20]).all()
    wide = pixels(heatmap(PICTURE, values, limits=(0.0, 2.0)))
    assert plain[2, 2].sum() < wide[12, 20].sum() < plain[12, 20].sum()
    flat = pixels(heatmap(PICTURE, np.zeros((4, 6))))  # no value above the least is no error
    assert (flat == plain[2, 2]).all()


def test_the_picture_shows_through_the_heat():
    picture = PICTURE.copy()
    picture[:, 24:] = 255
    drawn = pixels(heatmap(picture, np.ones((4, 6))))
    assert drawn[16, 40].sum() > drawn[16, 8].sum()


def test_a_heatmap_of_another_height():
    values = np.zeros((4, 6))
    values[1, 2] = 1.0
    small, large = (pixels(heatmap(PICTURE, values, height=height)) for height in (32, 64))
    assert large.shape == (64, 96, 3) and np.array_equal(large[24, 40], small[12, 20])


def test_outliers_are_outlined():
    mask = np.zeros((4, 6), bool)
    mask[1, 2:4] = True
    drawn = mark(Image.new("RGB", (60, 40)), (4, 6), outliers=mask)
    lines = pixels(drawn).sum(-1) > 100
    assert lines[9:12, 20:40].any(0).all() and lines[19:22, 20:40].any(0).all()
    assert lines[10:20, 19:22].any(1).all() and lines[10:20, 39:42].any(1).all()
    # none between two outliers, none elsewhere
    assert not lines[12:18, 23:38].any() and not lines[:, 43:].any() and not lines[:8].any()
    assert (pixels(drawn)[lines] @ OUTLIER > 0).all()


def test_a_mark_leaves_the_other_pixels():
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    assert np.array_equal(pixels(mark(Image.fromarray(noise), (4, 6))), noise)
    framed = pixels(mark(Image.fromarray(noise), (4, 6), patch=(2, 1)))
    changed = (framed != noise).any(-1)
    assert changed[20, 10:20].all() and changed[20:30, 10].all()  # the frame on the patch's rim
    assert not changed[23:27, 13:17].any() and not changed[:, 26:].any()
    assert (framed[20, 12:18] > 200).all()  # white within a dark rim


def test_a_mask_is_filled():
    mask = np.zeros((4, 6), bool)
    mask[0, 0] = True
    drawn = pixels(mask_over(PICTURE, mask))
    assert np.abs(drawn[3, 3] - MASK).max() < 50 and np.ptp(drawn[20, 20]) == 0
    assert (drawn[:, 8:] == drawn[20, 20]).all() and (drawn[8:] == drawn[20, 20]).all()
    assert has(mask_over(PICTURE, mask, (0, 255, 0)), tuple(drawn[20, 20])).sum() == 32 * 48 - 64


def test_a_sheet_has_its_pictures_in_their_places():
    colours = [[RED, GREEN], [BLUE]]
    rows = [[("title", np.full((60, 90, 3), c, np.uint8)) for c in row] for row in colours]
    drawn = sheet(rows, [("sea", (7, 8, 9))], 60)
    centres = {c: np.argwhere(has(drawn, c)).mean(0) for c in (RED, GREEN, BLUE)}
    assert centres[RED][1] < centres[GREEN][1] and centres[RED][0] == centres[GREEN][0]
    assert centres[BLUE][0] > centres[RED][0] and centres[BLUE][1] == centres[RED][1]
    areas = {c: has(drawn, c).sum() for c in (RED, GREEN, BLUE)}
    assert min(areas.values()) > 0.8 * 60 * 90 and np.ptp(list(areas.values())) < 400
    swatch = np.argwhere(has(drawn, (7, 8, 9)))
    assert len(swatch) > 40 and swatch[:, 0].min() > centres[BLUE][0]


def test_titles_and_heading_are_drawn():
    def ink(**texts: object) -> int:
        return (pixels(to_image(panels(2, 2, (60, 90), **texts)[0])).sum(-1) < 300).sum()

    assert ink() == 0
    one = ink(titles=["one"])
    assert 0 < one < ink(titles=["one", "two"])
    assert ink(heading="what it shows") > one
    long = " ".join(["a heading that is far wider than its figure goes on below itself"] * 2)
    assert ink(heading=f"{long} ends") > ink(heading=long) > 0


def test_a_legend_leaves_the_pictures_pixels_and_has_its_swatches():
    noise = np.random.default_rng(0).integers(0, 256, (50, 300, 3), np.uint8)
    drawn = with_legend(Image.fromarray(noise), [("sea", RED), ("boat", BLUE)])
    assert np.array_equal(pixels(drawn)[:50, :300], noise)
    below = drawn.crop((0, 50, *drawn.size))
    red, blue = (np.argwhere(has(below, colour)) for colour in (RED, BLUE))
    assert len(red) > 30 and len(blue) > 30 and red[:, 1].max() < blue[:, 1].min()
    assert with_legend(Image.fromarray(noise), []).size == (300, 50)


def test_an_outlined_swatch_is_empty():
    figure = panels(1, 1, (60, 90))[0]
    add_legend(figure, [("outliers", RED)], outlined=True)
    red = np.argwhere(has(to_image(figure), RED))
    middle = red.mean(0).round().astype(int)
    assert len(red) > 20 and pixels(to_image(figure))[tuple(middle)].tolist() == [255, 255, 255]


@pytest.mark.parametrize("name", ["_hidden", "$x^2$ for $5", "50 % $\\nothing", "a cat"])
def test_any_name_is_written_as_it_is(name):
    blank, written = (
        with_legend(Image.new("RGB", (400, 40)), [(text, RED)]) for text in (" ", name)
    )
    dark = [(pixels(each)[40:, 30:].sum(-1) < 300).sum() for each in (blank, written)]
    assert dark[0] == 0 and dark[1] > 5 * len(name)


def test_a_legend_wraps_and_a_narrow_picture_gets_a_wider_sheet():
    entries = [(f"name {i}", (i * 20, 0, 0)) for i in range(12)]
    few, many = (with_legend(Image.new("RGB", (200, 50)), entries[:n]) for n in (1, 12))
    assert few.width == many.width == 200 and many.height > few.height + 40
    below = many.crop((0, 50, *many.size))
    assert all(has(below, colour).sum() > 20 for _, colour in entries)
    narrow = with_legend(Image.new("RGB", (5, 50), "lime"), [("a long name", RED)])
    assert narrow.width > 40 and has(narrow, (0, 255, 0)).sum() == 5 * 50


def test_a_legend_of_a_figure_lies_below_the_panels():
    figure, axes = panels(1, 1, (60, 90))
    axes[0, 0].imshow(np.full((60, 90, 3), BLUE, np.uint8))
    add_legend(figure, [("sea", RED)])
    drawn = to_image(figure)
    assert np.argwhere(has(drawn, RED))[:, 0].min() > np.argwhere(has(drawn, BLUE))[:, 0].max()
