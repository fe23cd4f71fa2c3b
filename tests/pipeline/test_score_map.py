"""Stitching and enlarging in one step against both done plainly, one after the other."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sfp.pipeline import score_map
from sfp.pipeline.score_map import ScoreMap
from sfp.pipeline.windows import window_grid


def plainly(maps, windows, size, label_size):
    """Each map to its window's pixels, the average over windows, the average to the label map.

    (Q, H, W).
    """
    total, visits = torch.zeros(maps.shape[3], *size), torch.zeros(size)
    for w, scores in zip(windows, maps.permute(0, 3, 1, 2), strict=True):
        total[:, w.top : w.bottom, w.left : w.right] += F.interpolate(
            scores[None], w.size, mode="bilinear", align_corners=False
        )[0]
        visits[w.top : w.bottom, w.left : w.right] += 1
    return F.interpolate((total / visits)[None], label_size, mode="bilinear", align_corners=False)[
        0
    ]


@pytest.mark.parametrize("cells", [(14, 14), (5, 9), (224, 224)])
@pytest.mark.parametrize(
    ("size", "label_size"),
    [
        ((250, 260), (250, 260)),
        ((336, 448), (480, 640)),
        ((300, 413), (77, 1000)),
        ((100, 230), (64, 3)),
        ((31, 40), (1, 1)),
    ],
)
@pytest.mark.parametrize(("crop", "stride"), [(224, 112), (224, 57), (64, 64), (0, 1)])
def test_equals_two_plain_steps(size, label_size, crop, stride, cells, monkeypatch):
    windows = window_grid(*size, crop, stride)
    if len(windows) * cells[0] > 3000:
        pytest.skip("thousands of pixel maps")
    maps = torch.randn(len(windows), *cells, 2)
    expected = plainly(maps, windows, size, label_size)
    for pixels in (1 << 20, 700):
        monkeypatch.setattr(score_map, "_CACHE_BYTES", pixels * 2 * 4)
        found = ScoreMap.of_windows(maps, windows, size).resized(label_size)
        assert found.size == label_size
        torch.testing.assert_close(found.canvas(), expected, atol=2e-5, rtol=0)


def test_averaging_constant_maps_changes_nothing():
    windows = window_grid(300, 413, 224, 112)
    scores = ScoreMap.of_windows(
        torch.full((len(windows), 14, 14, 3), 0.25), windows, (300, 413)
    ).resized((375, 500))
    torch.testing.assert_close(scores.canvas(), torch.full((3, 375, 500), 0.25), atol=1e-6, rtol=0)


def test_tiles_cover_each_pixel_once(monkeypatch):
    monkeypatch.setattr(score_map, "_CACHE_BYTES", 3 * 4 * 100)
    seen = torch.zeros(50, 333)
    for rows, columns, tile in (
        ScoreMap.of_pixels(torch.randn(3, 20, 30)).resized((50, 333)).tiles()
    ):
        assert tile.shape == (rows.stop - rows.start, columns.stop - columns.start, 3)
        assert tile.shape[0] * tile.shape[1] <= 100
        seen[rows, columns] += 1
    assert torch.equal(seen, torch.ones(50, 333))
