"""Shares of a dataset: their order, their interval, shifted labels; and Table 2's rungs."""

from __future__ import annotations

import numpy as np
import pytest

from sfp.plugin import require_mmseg

require_mmseg()

from sfp.verification.datasets import interval, miou, shift_words, spread_order  # noqa: E402
from sfp.verification.readings import Reading, readings  # noqa: E402


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_every_beginning_is_spread_over_the_dataset(count):
    order = spread_order(count)
    assert sorted(order) == list(range(count))
    some = sorted(order[: (count + 1) // 2])
    assert max(np.diff([-1, *some, count])) <= 4


def test_an_interval_covers_the_whole_sets_figure():
    rng = np.random.default_rng(3)
    labelled = rng.integers(50, 100, (400, 4))
    right = (labelled * rng.uniform(0.3, 0.9, (400, 4))).astype(int)
    counts = np.stack([right, labelled, labelled], 1)
    whole = miou(counts.sum(0))
    off = [abs(miou(counts[i : i + 40].sum(0)) - whole) for i in range(0, 400, 40)]
    half = interval(counts[:40])
    assert 8 <= sum(own <= half for own in off) <= 10
    assert interval(counts) < half / 2
    assert interval(np.repeat(counts[:1], 9, 0)) == 0


def test_shifts_are_told_only_where_they_explain_the_labels():
    assert shift_words({-1: 0.1, 0: 0.5, 1: 0.3}) == ""
    assert shift_words({-1: 0.0, 0: 0.01, 1: 0.05}) == ""
    assert "80% of pixels would be right if the labels were one higher" in shift_words(
        {-1: 0.1, 0: 0.05, 1: 0.8}
    )


def test_an_answer_counts_from_the_rung_that_it_touches():
    reading = Reading("x", ("max_outliers=10", "sae_residual=none", "hai_cls=True"))
    assert reading.rungs == (
        "ClearCLIP",
        "ClearCLIP:purify=True,pm=SOM,max_outliers=10",
        "SFP:hai=False,max_outliers=10,sae_residual=none",
        "SFP:max_outliers=10,sae_residual=none,hai_cls=True",
    )


def test_readings_begin_with_the_default_and_the_question_that_tells_most():
    first, second, *_ = every = readings()
    assert first.options == () and second.question == "9" and len(every) > 15
    assert {own.question for own in readings(["14"])[1:]} == {"14"}
