"""The layer probes: against scikit-learn and by hand, and on layers of the built-in model."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from conftest import ROOT
from sklearn.metrics import roc_auc_score

from sfp.clip.coherence import coherence
from sfp.clip.trunk import Attention, Hook
from sfp.datasets import toyland
from sfp.experiments.probes import (
    attention_entropy,
    class_scores,
    drawn_pairs,
    free_values,
    overlap,
    probe_layers,
    sampled_coherence,
    text_alignment,
)
from sfp.methods import build_method
from sfp.outliers import build_detector


@pytest.fixture(scope="module")
def window(toyland_clip):
    scene = toyland.make_scene("tune", 0)
    image = toyland_clip.normalise(torch.from_numpy(scene.image.copy()).permute(2, 0, 1))[
        None, :, 60:284, 60:284
    ]
    return image, torch.from_numpy(scene.labels.astype(np.int64))[None, 60:284, 60:284]


def test_sampled_coherence_is_scikit_learns_on_the_same_pairs():
    features, labels = torch.randn(60, 16), torch.randint(0, 4, (60,))
    features[labels == 0] += 1.0
    first, second = drawn_pairs(60, 500, 3)
    assert (
        len({(i, j) for i, j in zip(first.tolist(), second.tolist(), strict=True) if i < j}) == 500
    )
    cosines = torch.nn.functional.cosine_similarity(features[first], features[second]).numpy()
    expected = roc_auc_score((labels[first] == labels[second]).numpy(), cosines)
    assert sampled_coherence(features, labels, 500, seed=3) == pytest.approx(expected, abs=1e-6)
    assert sampled_coherence(features, labels, 10**6) == pytest.approx(
        coherence(features, labels), abs=1e-6
    )
    ignored = labels.clone()
    ignored[10:] = 255
    assert sampled_coherence(features, ignored, 10**6) == pytest.approx(
        coherence(features[:10], labels[:10]), abs=1e-6
    )
    assert sampled_coherence(features, torch.zeros(60), 500) is None


def test_alignment_by_hand():
    scores = torch.tensor([[0.9, 0.1, 0.2], [0.3, 0.5, 0.1], [0.0, 0.4, 0.2], [1.0, 0.0, 0.0]])
    alignment, accuracy = text_alignment(scores, torch.tensor([0, 0, 1, 255]))
    assert alignment == pytest.approx((0.75 + 0.0 + 0.3) / 3) and accuracy == pytest.approx(2 / 3)
    assert text_alignment(scores, torch.full((4,), 255)) == (None, None)
    best = class_scores(torch.tensor([[[0.1, 0.4, -0.2]]]), torch.tensor([0, 0, 1]))
    assert torch.equal(best, torch.tensor([[[0.4, -0.2]]]))


def test_entropy_of_uniform_and_of_sharp_attention():
    q, k = torch.zeros(2, 3, 5, 4), torch.randn(2, 3, 5, 4)
    assert all(torch.allclose(entropy, torch.ones(2)) for entropy in attention_entropy(q, k))
    sharp = torch.eye(5).expand(2, 3, 5, 5) * 100
    assert all((entropy.abs() < 1e-6).all() for entropy in attention_entropy(sharp, sharp))


def test_overlap_by_hand():
    a = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]], dtype=torch.bool)
    b = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    assert overlap(a, b) == [pytest.approx(1 / 3), None, 0.0]


def test_the_last_layers_values_are_those_of_bare_maskclip(toyland_clip, window):
    kept = []
    with torch.inference_mode():
        toyland_clip.trunk.run(window[0], [Hook(kept.append, [12])])
        values = toyland_clip.trunk.readout(free_values(toyland_clip.trunk, kept[0]))
    expected = build_method("MaskCLIP", toyland_clip, variant="bare")(window[0]).flatten(1, 2)
    assert torch.allclose(values, expected, atol=1e-4)


def test_layers_of_toyland(toyland_clip, window):
    text = torch.nn.functional.normalize(torch.randn(32, toyland_clip.embed_dim), dim=1)
    detectors = [build_detector("SOM"), build_detector("L2")]
    found = probe_layers(
        toyland_clip, *window, text, [i // 2 for i in range(32)], detectors=detectors, pairs=2000
    )
    names = {
        "q",
        "k",
        "v",
        "tokens",
        "components",
        "alignment",
        "accuracy",
        "entropy",
        "cls entropy",
        "SOM",
        "L2",
        "SOM & L2",
    }
    assert set(found) == {(name, layer) for name in names for layer in range(1, 13)}
    assert all(found["L2", layer] == [pytest.approx(10 / 196)] for layer in range(1, 13))
    assert all(
        0.4 < found["k", layer][0] <= 1 and 0 < found["entropy", layer][0] < 1
        for layer in range(1, 13)
    )
    masks = []
    with torch.inference_mode():
        toyland_clip.trunk.run(
            window[0],
            [Hook(lambda state: masks.append(detectors[0](state)[0]), [9], Attention.MAP)],
        )
    assert found["SOM", 9] == [pytest.approx(masks[0].float().mean().item())]


def test_255_is_a_class_where_another_label_is_ignored(toyland_clip, window):
    """Two classes, one of them 255: all patches have one of them, or one class is left out."""
    windows, labels = window
    labels = torch.where(labels == labels.min(), 255, 3)
    text = torch.nn.functional.normalize(torch.randn(256, toyland_clip.embed_dim), dim=1)
    of_both, of_one = (
        probe_layers(toyland_clip, windows, labels, text, range(256), ignore=ignore)
        for ignore in (65535, 255)
    )
    assert len(of_both["k", 3]) == 1 and len(of_one["k", 3]) == 0
    assert of_both["alignment", 12] != of_one["alignment", 12]
    labels[..., :100] = 65535
    found = probe_layers(toyland_clip, windows, labels, text, range(256), ignore=65535)
    assert len(found["accuracy", 12]) == 1


# over 5 s: every probe of every layer of two pictures, with LOF in each, and its figure
def test_the_tool(tool, tmp_path):
    arguments = [
        ROOT / "configs/cfg_toyland.py",
        "--images",
        2,
        "--detectors",
        "SOM",
        "LOF",
        "--pairs",
        1000,
    ]
    arguments += [
        "--csv",
        tmp_path / "probe.csv",
        "--plot",
        tmp_path / "probe.png",
        "--out",
        tmp_path / "probe.json",
        "--save",
        tmp_path / "probe.md",
    ]
    data = [
        "--cfg-options",
        f"test_dataloader.dataset.data_root={tmp_path}/toyland",
        "test_dataloader.dataset.scenes=2",
    ]
    code, output, error = tool("probe_layers", *arguments, *data)
    assert code == 0, error
    figures = json.loads((tmp_path / "probe.json").read_text())
    rows = list(csv.DictReader((tmp_path / "probe.csv").open()))
    by_place = {(row["probe"], row["layer"]): float(row["mean"]) for row in rows}
    assert by_place["SOM & LOF", "11"] == pytest.approx(
        figures["overlap"]["SOM & LOF"]["11"], abs=1e-6
    )
    assert (
        by_place["accuracy", "12"] == pytest.approx(figures["accuracy"]["12"], abs=1e-6)
        and figures["accuracy"]["12"] > 0.4
    )
    saved = (tmp_path / "probe.md").read_text()
    assert saved.count("| 12 |") == 3 and f"| {figures['auroc']['k']['12']:.4f} |" in saved
    assert "SOM & LOF" in output and (tmp_path / "probe.png").stat().st_size > 20000
    code, _, error = tool("probe_layers", *arguments[:3], "--detectors", "SOM", "SOM")
    assert code == 2 and "names one twice" in error
    code, _, error = tool("probe_layers", *arguments[:3], "--plot", tmp_path / "probe.xyz", *data)
    assert code == 2 and "give --plot a file such as probe.png" in error
