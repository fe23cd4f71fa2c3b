"""The AUROC probe: patch labels, coherence by hand, layers of the built-in model."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import ROOT

from sfp.clip.coherence import coherence, nearest_labels, patch_labels


def test_patch_labels_are_the_commonest_and_skip_the_ignored():
    labels = torch.tensor(
        [[[1, 1, 2, 2, 9], [1, 3, 255, 255, 9], [0, 0, 255, 255, 9], [4, 4, 255, 255, 9]]]
    )
    assert patch_labels(labels, (2, 2), 2).tolist() == [[1, 2, 0, 255]]
    assert patch_labels(torch.full((1, 4, 4), 255), (2, 2), 2).tolist() == [[255] * 4]


def test_coherence_by_hand():
    features = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    # same: 0-1 (1.0); other: 0-2 and 1-2 (0.0); patch 3 is ignored
    assert coherence(features, torch.tensor([0, 0, 1, 255])) == 1.0
    # same: 0-1 (1.0) and 2-3 (0.71); other: 0-2, 1-2 (0.0), 0-3, 1-3 (0.71, ties with 2-3)
    assert coherence(features, torch.tensor([0, 0, 1, 1])) == pytest.approx((4 + 2 + 2 * 0.5) / 8)
    for one_kind in ([0, 0, 0, 0], [0, 1, 2, 3]):
        assert coherence(features, torch.tensor(one_kind)) is None


def test_nearest_labels_keep_their_values():
    labels = torch.randint(0, 151, (37, 53))
    assert torch.equal(nearest_labels(nearest_labels(labels, (74, 106)), (37, 53)), labels)


# over 5 s: the coherence of every layer, and the parts that its attention falls into
def test_the_tool(tool, tmp_path):
    start = ["probe_layers", ROOT / "configs/cfg_toyland.py", "--images", 2]
    data = dict(data_root=tmp_path / "toyland", split="tune", scenes=3)
    options = ["model.prompts=photo"]
    options += [f"test_dataloader.dataset.{key}={value}" for key, value in data.items()]
    code, told, error = tool(*start, "--out", tmp_path / "probe.json", "--cfg-options", *options)
    assert code == 0, error
    figures = json.loads((tmp_path / "probe.json").read_text())
    best = max(range(1, 12), key=lambda layer: figures["auroc"]["k"][str(layer)])
    assert f"model.attention_layer={best}  " in told and figures["images"] == 2
    assert all(1 <= count <= 196 for count in figures["components"].values())
