"""From scores to labels against a plain reference, and golden PAMR."""

from __future__ import annotations

import os
import textwrap

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from forked import run

from sfp.pipeline import score_map
from sfp.pipeline.decode import decode
from sfp.pipeline.score_map import ScoreMap


def reference(scores, size, groups, logit_scale=40.0, prob_thd=0.0, area_thd=None):
    """The protocol on whole maps, one step after the other."""
    if tuple(scores.shape[1:]) != tuple(size):
        scores = F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]
    queries = (scores * logit_scale).softmax(0)
    classes = torch.stack(
        [queries[groups == c].max(0).values for c in range(int(groups.max()) + 1)]
    )
    if area_thd is not None:
        counts = torch.tensor([(classes.argmax(0) == c).sum() for c in range(len(classes))])
        for c in range(1, len(classes)):
            if counts[c] <= area_thd * counts[1:].sum():
                classes[c] = 0
    labels = classes.argmax(0)
    labels[classes.max(0).values < prob_thd] = 0
    return labels, classes


@pytest.mark.parametrize("size", [(33, 47), (90, 61), (20, 30)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(prob_thd=0.4),
        dict(area_thd=0.2),
        dict(prob_thd=0.3, area_thd=0.15, logit_scale=10.0),
    ],
    ids=str,
)
def test_equals_the_reference_also_in_small_tiles(size, options, monkeypatch):
    scores = torch.randn(7, 20, 30) * 0.05
    groups = torch.tensor([0, 1, 1, 2, 3, 3, 3])
    labels, classes = reference(scores, size, groups, **options)
    for pixels in (1 << 20, 3 * size[1], 11):  # whole, three rows, a part of a row
        monkeypatch.setattr(score_map, "_CACHE_BYTES", pixels * 7 * 4)
        found, kept = decode(
            ScoreMap.of_pixels(scores).resized(size), groups, keep_probabilities=True, **options
        )
        torch.testing.assert_close(kept, classes, atol=1e-6, rtol=1e-5)
        top = classes.topk(2, dim=0).values
        sure = (top[0] - top[1] > 1e-5) & ((top[0] - options.get("prob_thd", 0)).abs() > 1e-5)
        assert torch.equal(found[sure], labels[sure]) and sure.float().mean() > 0.99


def test_synonyms_take_the_maximum_not_the_sum():
    scores = torch.tensor([0.30, 0.29, 0.29]).view(3, 1, 1).expand(3, 4, 4)
    labels, kept = decode(
        ScoreMap.of_pixels(scores),
        torch.tensor([0, 1, 1]),
        logit_scale=10.0,
        keep_probabilities=True,
    )
    assert not labels.any() and kept.sum(0).max() < 1


def test_no_threshold_never_yields_background():
    scores = ScoreMap.of_pixels(torch.tensor([-1.0, 0.0]).view(2, 1, 1).expand(2, 5, 5))
    labels, _ = decode(scores, torch.arange(2), prob_thd=0.0)
    assert (labels == 1).all()


def test_the_area_rule_is_a_share_of_the_foreground_and_strict():
    scores = torch.zeros(3, 10, 10)
    scores[0, :5] = 1.0  # half background
    scores[1, 5:9] = 1.0  # 40 pixels
    scores[2, 9:] = 1.0  # 10 pixels: exactly a fifth of the foreground
    scores, groups = ScoreMap.of_pixels(scores), torch.arange(3)
    assert set(decode(scores, groups, area_thd=0.2)[0].unique().tolist()) == {0, 1}
    assert set(decode(scores, groups, area_thd=0.199)[0].unique().tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
    ("queries", "classes", "size", "resized", "mebibytes"),
    [
        pytest.param(847, 847, (1024, 2048), (560, 1120), 200, marks=pytest.mark.slow),
        (150, 81, (480, 640), (336, 448), 60),
    ],
)
def test_memory_does_not_grow_with_queries_times_pixels(queries, classes, size, resized, mebibytes):
    """Beyond the label map and the scores on the patch grids.

    847 canvases of 1024x2048 would take 6776 MiB.
    """
    code = f"""
        import resource
        import torch
        from sfp.pipeline.decode import decode
        from sfp.pipeline.score_map import ScoreMap
        from sfp.pipeline.windows import window_grid
        torch.set_num_threads(1)
        windows = window_grid(*{resized}, 224, 112)
        groups = torch.arange({queries}).clamp(max={classes - 1})
        # what torch loads on first use
        small = ScoreMap.of_pixels(torch.randn(3, 20, 20))
        decode(small, torch.arange(3), prob_thd=0.1, area_thd=0.1)
        maps = torch.randn(len(windows), 14, 14, {queries})
        scores = ScoreMap.of_windows(maps, windows, {resized}).resized({size})
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        decode(scores, groups, prob_thd=0.001)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
    """
    done = run("-c", textwrap.dedent(code), cwd=ROOT, environment=os.environ)
    assert float(done.stdout) < mebibytes, done.stderr[-2000:]


def test_a_background_that_no_query_asks_for_has_the_threshold_as_its_score():
    """Class 0 without a query.

    Unlikely pixels fall to it, and names below ``area_thd`` are dropped.
    """
    cosines = torch.tensor([[[0.9, 0.1, 0.6, 0.52]], [[0.1, 0.9, 0.4, 0.48]]])
    scores, groups = ScoreMap.of_pixels(cosines.log()), torch.tensor([1, 2])
    options = dict(logit_scale=1.0, keep_probabilities=True)
    labels, kept = decode(scores, groups, prob_thd=0.55, **options)
    assert labels.tolist() == [[1, 2, 1, 0]]
    torch.testing.assert_close(kept, torch.cat([torch.full((1, 1, 4), 0.55), cosines]))
    labels, kept = decode(scores, groups, prob_thd=0.55, area_thd=0.3, **options)
    assert labels.tolist() == [[1, 0, 1, 0]] and kept[2].max() == 0
