"""Repair against a loop, and its corner cases."""

from __future__ import annotations

import pytest
import torch

from sfp.errors import SFPError
from sfp.outliers import repair


def slow(patches: torch.Tensor, outliers: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """One image (N, C): the mean of valid neighbours, a token without any is kept."""
    fixed = patches.clone()
    for i in outliers.nonzero()[:, 0].tolist():
        row, column = divmod(i, grid[1])
        near = [
            (row + dr) * grid[1] + column + dc
            for dr in (-1, 0, 1)
            for dc in (-1, 0, 1)
            if (dr or dc) and 0 <= row + dr < grid[0] and 0 <= column + dc < grid[1]
        ]
        near = [n for n in near if not outliers[n]]
        if near:
            fixed[i] = patches[near].mean(0)
    return fixed


@pytest.mark.parametrize("grid", [(5, 5), (4, 9), (9, 4), (1, 6), (1, 1)])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_equals_the_loop_in_a_batch(grid, share):
    patches = torch.randn(6, grid[0] * grid[1], 7)
    outliers = torch.rand(patches.shape[:2]) < share
    expected = torch.stack([slow(p, o, grid) for p, o in zip(patches, outliers, strict=True)])
    torch.testing.assert_close(repair(patches, outliers, grid), expected)


def slow_filling(
    patches: torch.Tensor, outliers: torch.Tensor, grid: tuple[int, int], filling: str
) -> torch.Tensor:
    """One image (N, C), each outlier from its clean neighbours in row order."""
    fixed = patches.clone()
    for i in outliers.nonzero()[:, 0].tolist():
        row, column = divmod(i, grid[1])
        near = {
            r * grid[1] + c: abs(r - row) + abs(c - column)
            for r in range(max(0, row - 1), min(grid[0], row + 2))
            for c in range(max(0, column - 1), min(grid[1], column + 2))
            if (r, c) != (row, column) and not outliers[r * grid[1] + c]
        }
        if not near:
            continue
        rows, steps = patches[list(near)], torch.tensor(list(near.values()), dtype=torch.float)
        if filling == "nearest":
            fixed[i] = rows[steps.argmin()]
        elif filling == "median":
            ordered = rows.sort(0).values
            fixed[i] = (ordered[(len(rows) - 1) // 2] + ordered[len(rows) // 2]) / 2
        else:
            weights = (
                1 / steps.sqrt() if filling == "weighted" else torch.where(steps == 1, 0.5, 0.25)
            )
            fixed[i] = (weights[:, None] * rows).sum(0) / weights.sum()
    return fixed


@pytest.mark.parametrize("filling", ["bilinear", "weighted", "median", "nearest"])
@pytest.mark.parametrize("grid", [(5, 6), (1, 6)])
def test_other_fillings_equal_the_loop(filling, grid):
    patches = torch.randn(4, grid[0] * grid[1], 3)
    outliers = torch.rand(patches.shape[:2]) < torch.tensor([0.1, 0.5, 0.9, 1.0])[:, None]
    expected = torch.stack(
        [slow_filling(p, o, grid, filling) for p, o in zip(patches, outliers, strict=True)]
    )
    torch.testing.assert_close(repair(patches, outliers, grid, filling=filling), expected)
    poisoned = patches.masked_fill(outliers[..., None], torch.nan)
    some = repair(
        poisoned[:2], outliers[:2], grid, filling=filling, empty="zero"
    )  # an outlier's own value enters nothing
    assert torch.isfinite(some).all()


def test_places_on_a_grid_of_numbers():
    patches = torch.arange(9.0)[None, :, None]

    def at(*places: int) -> torch.Tensor:
        mask = torch.zeros(1, 9, dtype=torch.bool)
        mask[0, list(places)] = True
        return repair(patches, mask, (3, 3))[0, :, 0]

    assert at(4)[4] == (0 + 1 + 2 + 3 + 5 + 6 + 7 + 8) / 8  # interior
    assert at(1)[1] == (0 + 2 + 3 + 4 + 5) / 5  # edge
    assert at(0)[0] == (1 + 3 + 4) / 3  # corner
    assert at(0, 1)[0] == (3 + 4) / 2  # beside another outlier: from old, clean values alone
    assert torch.equal(at(0, 1, 3, 4)[[0, 8]], torch.tensor([0.0, 8.0]))  # closed in: kept
    assert torch.equal(at(), patches[0, :, 0])


def test_nan_in_an_outlier_does_not_spread():
    patches = torch.ones(1, 9, 2)
    patches[0, 4] = float("nan")
    mask = torch.zeros(1, 9, dtype=torch.bool)
    mask[0, 4] = True
    assert torch.equal(repair(patches, mask, (3, 3)), torch.ones(1, 9, 2))


def test_divisor_eight_is_eq_5_as_printed():
    mask = torch.zeros(1, 9, dtype=torch.bool)
    mask[0, 0] = True
    fixed = repair(torch.arange(9.0)[None, :, None], mask, (3, 3), divisor="eight")
    assert fixed[0, 0, 0] == (1 + 3 + 4) / 8


class TestWithoutCleanNeighbours:
    patches = torch.arange(25.0)[None, :, None]
    outliers = torch.ones(1, 25, dtype=torch.bool)
    outliers[0, 24] = False  # one clean corner

    def fill(self, empty: str) -> torch.Tensor:
        return repair(self.patches, self.outliers, (5, 5), empty=empty)[0, :, 0]

    def test_keep(self):
        assert torch.equal(self.fill("keep")[:18], self.patches[0, :18, 0])

    def test_zero(self):
        assert torch.equal(self.fill("zero")[:18], torch.zeros(18))
        assert self.fill("zero")[23] == 24

    def test_iterate_fills_from_the_rim_inwards(self):
        assert torch.equal(self.fill("iterate"), torch.full((25,), 24.0))

    def test_nearest(self):
        assert torch.equal(self.fill("nearest"), torch.full((25,), 24.0))

    @pytest.mark.parametrize("empty", ["keep", "iterate", "nearest"])
    def test_nothing_clean_at_all_is_kept(self, empty):
        everything = torch.ones(1, 25, dtype=torch.bool)
        assert torch.equal(repair(self.patches, everything, (5, 5), empty=empty), self.patches)


def test_dtype_is_kept_and_choices_are_checked():
    mask = torch.ones(1, 4, dtype=torch.bool)
    assert repair(torch.ones(1, 4, 2, dtype=torch.bfloat16), mask, (2, 2)).dtype == torch.bfloat16
    with pytest.raises(SFPError, match="'drop'"):
        repair(torch.ones(1, 4, 2), mask, (2, 2), empty="drop")
    with pytest.raises(SFPError, match="'nine'"):
        repair(torch.ones(1, 4, 2), mask, (2, 2), divisor="nine")
