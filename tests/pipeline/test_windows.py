"""Windows."""

from __future__ import annotations

import pytest
import torch

from sfp.pipeline.windows import cut, window_grid


@pytest.mark.parametrize(
    ("size", "crop", "stride", "rows", "columns"),
    [
        ((336, 448), 224, 112, 2, 3), ((336, 504), 224, 112, 2, 4), ((560, 1120), 224, 112, 4, 9),
        ((448, 896), 224, 112, 3, 7),
        ((336, 448), 336, 112, 1, 2), ((336, 504), 336, 112, 1, 3), ((448, 597), 448, 224, 1, 2),
        ((448, 896), 448, 224, 1, 3),
        ((100, 150), 224, 112, 1, 1), ((224, 224), 224, 112, 1, 1), ((225, 224), 224, 112, 2, 1),
    ],
)  # fmt: skip
def test_the_counts_of_the_specification(size, crop, stride, rows, columns):
    windows = window_grid(*size, crop, stride)
    assert len({w.top for w in windows}) == rows and len({w.left for w in windows}) == columns
    assert len(windows) == rows * columns


@pytest.mark.parametrize(
    "size", [(336, 448), (300, 413), (100, 500), (224, 225), (31, 7), (700, 333)]
)
@pytest.mark.parametrize(("crop", "stride"), [(224, 112), (224, 224), (64, 17), (0, 1)])
def test_every_pixel_is_covered_and_windows_are_inside(size, crop, stride):
    visits = torch.zeros(size)
    for w in window_grid(*size, crop, stride):
        assert 0 <= w.top < w.bottom <= size[0] and 0 <= w.left < w.right <= size[1]
        if crop:
            assert w.size == (min(crop, size[0]), min(crop, size[1]))
        visits[w.top : w.bottom, w.left : w.right] += 1
    assert visits.min() >= 1


def test_the_last_window_ends_at_the_border():
    windows = window_grid(300, 413, 224, 112)
    assert (windows[-1].bottom, windows[-1].right) == (300, 413)
    assert [w.left for w in windows[:3]] == [0, 112, 189]


def test_cut():
    image = torch.randn(3, 300, 413)
    assert torch.equal(cut(image, window_grid(300, 413, 224, 112)[-1]), image[:, 76:, 189:])
