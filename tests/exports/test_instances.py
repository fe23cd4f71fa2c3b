"""Instances of a label map: they part it, and their runs are those of the whole mask."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from sfp.exports.instances import find_instances

MAPS = arrays.arrays(
    np.int64, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 3)
)


@given(MAPS, st.booleans(), st.booleans())
def test_they_part_the_label_map(labels, parts, background):
    confidence = np.arange(labels.size, dtype=np.float32).reshape(labels.shape) / labels.size
    found = find_instances(labels, confidence, background=background, parts=parts)
    drawn, seen = np.zeros_like(labels), np.zeros(labels.shape, int)
    for each in found:
        mask, (*_, width, height) = each.whole_mask(labels.shape), each.box
        assert mask.sum() == each.area > 0 and each.mask.shape == (height, width)
        assert each.mask.any(0)[[0, -1]].all() and each.mask.any(1)[[0, -1]].all()  # tight
        assert each.score == pytest.approx(confidence[mask].mean(), abs=1e-4)
        drawn[mask], seen = each.label, seen + mask
        if parts:
            assert ndimage.label(mask, np.ones((3, 3)))[1] == 1
    assert np.array_equal(seen, (labels > 0) | (not background)) and np.array_equal(drawn, labels)
    kept = [label for label in range(4) if label or not background]
    if parts:
        counts = [ndimage.label(labels == label, np.ones((3, 3)))[1] for label in kept]
        assert len(found) == sum(counts)
    else:
        assert [each.label for each in found] == [k for k in kept if (labels == k).any()]


@given(MAPS, st.sampled_from("CF"))
def test_runs_are_those_of_the_flat_mask(labels, order):
    for each in find_instances(labels):
        flat = np.zeros(labels.size, int)
        runs = each.runs(labels.shape, order)
        for start, end in runs:
            flat[start:end] += 1
        assert np.array_equal(flat, (labels == each.label).flatten(order))
        assert (runs[1:, 0] > runs[:-1, 1]).all()  # none that could be one


def test_without_confidence_there_is_no_score():
    assert [each.score for each in find_instances(np.array([[0, 1]]))] == [None, None]
