"""The trainer of the built-in weights: it runs, goes on after an interruption as if there had been none, and is chosen from."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

sys.path.insert(0, str(ROOT / "tools"))


def run(tool: str, cwd, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tools" / tool), *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_resumed_equals_undisturbed_and_the_choice_loads(tmp_path):
    few = ("--scenes", "40", "--batch", "8", "--save-every", "2")
    run("train_toyland.py", tmp_path, "--work-dir", "whole", "--steps", "4", *few)
    run("train_toyland.py", tmp_path, "--work-dir", "parts", "--steps", "4", "--stop-after", "2", *few)
    assert not (tmp_path / "parts/step_00004.safetensors").exists()
    run("train_toyland.py", tmp_path, "--work-dir", "parts", "--steps", "4", "--resume", *few)
    whole, parts = (load_file(tmp_path / name / "step_00004.safetensors") for name in ("whole", "parts"))
    assert set(whole) == set(parts)
    for key in whole:
        torch.testing.assert_close(whole[key], parts[key], atol=2e-3, rtol=0)

    out = run("select_toyland.py", tmp_path, "--work-dir", "whole", "--scenes", "2", "--from-step", "4", "--out", "chosen.safetensors")
    card = json.loads((tmp_path / "chosen.json").read_text())
    assert card["step"] == 4 and card["sha256"] in out
    from sfp.clip import load_clip

    assert load_clip("Toyland", str(tmp_path / "chosen.safetensors"), device="cpu").quick_gelu


@pytest.fixture(scope="module")
def batch():
    from train_toyland import CropsWithCaptions

    crops = CropsWithCaptions(scenes=60, batch=32, steps=2, seed=0)
    return crops, crops[0]


def test_captions_are_true_of_their_own_picture_and_never_longer_than_the_cut(batch):
    crops, (images, tokens, truth) = batch
    assert images.shape == (32, 3, 224, 224) and images.dtype == torch.uint8
    assert tokens.shape == (32, 32) and (tokens == 49407).any(1).all()
    assert (truth.diagonal() == 1).all() and (truth == 0).float().mean() > 0.5
    again = crops[0]
    assert all(torch.equal(a, b) for a, b in zip(again, (images, tokens, truth), strict=True))


def test_the_training_forward_is_clips_own_where_nothing_is_held_back(batch):
    from train_toyland import build_model, encode_images, encode_short_text

    torch.manual_seed(0)
    model, (_, (_, tokens, _)) = build_model().eval(), batch
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(
            encode_images(model, images, 0.0, 12, None), model.encode_image(images, normalize=True), atol=1e-5, rtol=1e-5
        )
        full = torch.nn.functional.pad(tokens[:2], (0, 77 - tokens.shape[1]))
        torch.testing.assert_close(encode_short_text(model, tokens[:2]), model.encode_text(full, normalize=True), atol=1e-5, rtol=1e-5)
        near = encode_images(model, images, 0.0, 1, 2)
    assert not torch.allclose(near, model.encode_image(images, normalize=True), atol=1e-3)


def test_the_loss_by_hand():
    from train_toyland import contrastive_loss

    logits = torch.tensor([[2.0, 0.0], [1.0, 3.0]])
    truth = torch.tensor([[1, 0], [-1, 1]])
    s = torch.nn.functional.softplus
    rows = (s(torch.tensor(0.0 - 2.0)) + s(torch.tensor(-torch.inf))) / 2  # the second row has no false pair
    columns = (s(torch.tensor(-torch.inf)) + s(torch.tensor(0.0 - 3.0))) / 2
    torch.testing.assert_close(contrastive_loss(logits, truth), (rows + columns) / 2)
