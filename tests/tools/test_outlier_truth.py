"""Toyland's outliers are as docs/outliers.md says; figures equal plain readings on a window."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

from sfp.clip import load_clip
from sfp.clip.text_bank import TextBank
from sfp.datasets import toyland
from sfp.datasets.toyland_outliers import true_outliers
from sfp.outliers import build_detector

sys.path.append(str(ROOT / "tools/dev"))

from outlier_truth import TOKEN_FIGURES, detection_figures, token_figures


@pytest.fixture(scope="module")
def windows():
    from measure_outliers import windows_of

    images, labels = windows_of("tune", 4)
    return images, labels, true_outliers(images)


@pytest.fixture(scope="module")
def figures(windows, toyland_clip):
    images, labels, truth = windows
    text = TextBank(toyland_clip, cache_dir=False).encode(list(toyland.CLASSES))
    return token_figures(toyland_clip, toyland_clip.normalise(images), truth, labels, text)


def test_toylands_outliers_are_like_clips(figures):
    assert set(figures) == set(TOKEN_FIGURES) and all(
        len(values) == 12 for values in figures.values()
    )
    middle, deep = slice(6, 11), slice(7, 11)  # layers 7..11, 8..11
    assert max(figures["length"][:6]) < 1.5 and min(figures["length"][middle]) > 2.5
    assert max(figures["cls"][:7]) < 2 and min(figures["cls"][deep]) > 40
    assert min(figures["patches"][deep]) > 10 and min(figures["own"][:11]) > 95
    for layer in (
        9,
        10,
    ):  # after layers 10 and 11 they carry the picture's words, not their place's
        assert (
            figures["right"][layer] < figures["repaired"][layer] - 15
            and figures["elsewhere"][layer] > 40
        )


def test_the_twin_has_none(windows):
    images, labels, truth = windows
    clip = load_clip("Toyland-clean", device="cpu")
    text = TextBank(clip, cache_dir=False).encode(list(toyland.CLASSES))
    found = token_figures(clip, clip.normalise(images), truth, labels, text)
    assert max(found["length"][:11]) < 1.5 and max(found["cls"][:11]) < 15
    assert abs(found["right"][10] - found["others"][10]) < 25


def test_who_finds_them(windows, toyland_clip):
    images, _, truth = windows
    som, l2 = (build_detector(name) for name in ("SOM", "L2"))
    found = detection_figures(toyland_clip, toyland_clip.normalise(images), truth, [som, l2])
    assert max(found["SOM"]["flagged"]) < 8 and max(found["SOM"]["flagged"][:7]) < 1
    assert min(found["SOM"]["precision"][7:]) > 65 and min(found["SOM"]["recall"][7:]) > 50
    assert found["L2"]["precision"] == pytest.approx(
        found["L2"]["recall"]
    )  # it takes ten, which is their number
    assert min(found["L2"]["recall"][6:]) > 60


def test_figures_equal_a_plain_reading(windows, figures, toyland_clip):
    """Lengths and shares of attention after layer 9, a loop over windows and patches."""
    from sfp.clip.trunk import Attention, Hook

    images, _, truth = windows
    states = []
    hook = Hook(lambda state: states.append(state), [9], Attention.MAP)
    with torch.inference_mode():
        toyland_clip.trunk.run(toyland_clip.normalise(images), [hook], last=9)
    (state,) = states
    long, short, cls, patches = [], [], [], []
    for image in range(len(images)):
        attention = state.attention[image].numpy()
        marked = [i for i in range(196) if truth[image, i]]
        cls.append(sum(attention[0, 1 + i] for i in marked))
        for i in range(196):
            (long if i in marked else short).append(np.linalg.norm(state.patches[image, i].numpy()))
            if i not in marked:
                patches.append(sum(attention[1 + i, 1 + j] for j in marked))
    assert figures["length"][8] == pytest.approx(np.mean(long) / np.mean(short), rel=1e-4)
    assert figures["cls"][8] == pytest.approx(100 * np.mean(cls), rel=1e-4)
    assert figures["patches"][8] == pytest.approx(100 * np.mean(patches), rel=1e-4)
