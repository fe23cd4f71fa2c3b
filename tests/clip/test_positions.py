"""Positional embeddings for other grids."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from sfp.clip.positions import Resize, resize_positions
from sfp.errors import SFPError


def test_the_native_grid_is_untouched():
    positions = torch.randn(1 + 14 * 14, 8)
    assert resize_positions(positions, (14, 14), (14, 14)) is positions


@pytest.mark.parametrize("native", [7, 14, 16, 24])
@pytest.mark.parametrize("resize", get_args(Resize))
def test_every_grid_comes_out_exactly(native, resize):
    positions = torch.randn(1 + native * native, 2)
    for side in range(1, 91):
        for grid in ((side, native), (native, side), (side, side)):
            resized = resize_positions(positions, (native, native), grid, resize)
            assert resized.shape == (1 + grid[0] * grid[1], 2)
            assert torch.equal(resized[0], positions[0])


def test_as_many_tokens_on_another_grid_are_resized():
    positions = torch.randn(1 + 14 * 14, 4)
    assert not torch.equal(resize_positions(positions, (14, 14), (7, 28)), positions)


def test_scale_is_bicubic_with_the_supplied_factor():
    positions = torch.randn(1 + 49, 4)
    planes = positions[1:].T.reshape(1, 4, 7, 7)
    expected = F.interpolate(
        planes, scale_factor=(10.1 / 7, 12.1 / 7), mode="bicubic", align_corners=False
    )
    assert torch.equal(resize_positions(positions, (7, 7), (10, 12))[1:], expected[0].flatten(1).T)
    assert not torch.allclose(
        resize_positions(positions, (7, 7), (10, 12), "size"),
        resize_positions(positions, (7, 7), (10, 12)),
    )


def test_unknown_resize():
    with pytest.raises(SFPError, match="did you mean 'size'"):
        resize_positions(torch.randn(50, 4), (7, 7), (8, 8), "sizes")
