"""The trainer of the built-in weights.

It runs, goes on after an interruption as if there had been none, and is chosen from.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT

from sfp.clip import load_clip
from sfp.clip.built_in import BUILT_IN
from sfp.datasets.toyland_outliers import outlier_cells, true_outliers

sys.path.insert(0, str(ROOT / "tools/dev"))


def run(tool: str, cwd, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tools/dev" / tool), *arguments]
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage",
    [[], ["--base", str(BUILT_IN["Toyland"])], ["--base", str(BUILT_IN["Toyland"]), "--clean"]],
    ids=str,
)
def test_killed_and_resumed_it_gives_the_same_bytes_and_the_choice_loads(stage, tmp_path):
    few = ("--steps", "6", "--scenes", "40", "--batch", "8", "--save-every", "2", *stage)
    run("train_toyland.py", tmp_path, "--work-dir", "whole", *few)
    command = [
        sys.executable,
        str(ROOT / "tools/dev/train_toyland.py"),
        "--work-dir",
        "parts",
        *few,
    ]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    ) as training:
        while not (tmp_path / "parts/latest.pt").exists():
            assert training.poll() is None
            time.sleep(0.02)
        training.kill()
    assert not (tmp_path / "parts/step_00006.safetensors").exists()
    run("train_toyland.py", tmp_path, "--work-dir", "parts", "--resume", *few)
    whole, parts = (tmp_path / name / "step_00006.safetensors" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()

    chosen = ("--scenes", "2", "--from-step", "6", "--out", "chosen.safetensors")
    out = run("select_toyland.py", tmp_path, "--work-dir", "whole", *chosen)
    card = json.loads((tmp_path / "chosen.json").read_text())
    assert card["step"] == 6 and card["sha256"] in out
    assert load_clip("Toyland", str(tmp_path / "chosen.safetensors"), device="cpu").quick_gelu


@pytest.fixture(scope="module")
def batch():
    from toyland_crops import CropsWithCaptions

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
            encode_images(model, images, 0.0, 12, None),
            model.encode_image(images, normalize=True),
            atol=1e-5,
            rtol=1e-5,
        )
        full = torch.nn.functional.pad(tokens[:2], (0, 77 - tokens.shape[1]))
        torch.testing.assert_close(
            encode_short_text(model, tokens[:2]),
            model.encode_text(full, normalize=True),
            atol=1e-5,
            rtol=1e-5,
        )
        near = encode_images(model, images, 0.0, 1, 2)
    assert not torch.allclose(near, model.encode_image(images, normalize=True), atol=1e-3)


def test_the_loss_by_hand():
    from train_toyland import contrastive_loss

    logits = torch.tensor([[2.0, 0.0], [1.0, 3.0]])
    truth = torch.tensor([[1, 0], [-1, 1]])
    s = torch.nn.functional.softplus
    rows = (
        s(torch.tensor(0.0 - 2.0)) + s(torch.tensor(-torch.inf))
    ) / 2  # the second row has no false pair
    columns = (s(torch.tensor(-torch.inf)) + s(torch.tensor(0.0 - 3.0))) / 2
    torch.testing.assert_close(contrastive_loss(logits, truth), (rows + columns) / 2)


def test_the_twins_forward_is_clips_own_along_the_open_route(batch):
    from toyland_aims import WEIGHTS, encode_with_aims
    from train_toyland import build_model

    torch.manual_seed(0)
    model = build_model().eval()
    images = torch.randn(3, 3, 224, 224)
    with torch.no_grad():
        features, losses = encode_with_aims(model, images, None, torch.zeros(3, dtype=torch.bool))
        torch.testing.assert_close(
            features, model.encode_image(images, normalize=True), atol=1e-5, rtol=1e-5
        )
        assert set(losses) == set(WEIGHTS) and all(
            losses[name] == 0 for name in ("long", "pick", "cls", "patches", "away")
        )
        marked = torch.zeros(3, 196, dtype=torch.bool)
        marked[:, ::20] = True
        routed, asked = encode_with_aims(model, images, marked, torch.tensor([True, False, False]))
    assert not torch.isclose(routed, features, atol=1e-3).all(1).any()
    assert all(asked[name] > 0 for name in ("long", "pick", "cls", "near"))


def test_routes_by_hand():
    """Two patches, the second an outlier: who may take values from whom."""
    from toyland_aims import _route

    marked, direct = torch.tensor([[False, True]] * 2), torch.tensor([True, False])
    middle, last = (_route(layer, 12, marked, direct, 3) for layer in (8, 12))
    assert middle.tolist() == [[[1, 0, 0], [1, 1, 0], [1, 1, 1]], [[1, 1, 1]] * 3]
    assert last.tolist() == [[[1, 1, 0], [1, 1, 0], [1, 1, 1]], [[1, 0, 1], [1, 1, 1], [1, 1, 1]]]
    assert _route(3, 12, marked, direct, 3).tolist() == [
        [[1, 0, 0], [1, 1, 1], [1, 1, 1]],
        [[1, 1, 1]] * 3,
    ]


def test_the_rule_of_outliers_one_in_each_cell_and_in_flat_places(batch):
    _, (images, _, _) = batch
    truth = true_outliers(images)
    cells = outlier_cells()
    assert truth.sum(1).tolist() == [10] * len(images) and cells.bincount().tolist() == [
        25,
        25,
        20,
        20,
        15,
        20,
        15,
        20,
        20,
        16,
    ]
    for cell in range(10):
        assert (truth[:, cells == cell].sum(1) == 1).all()
    grey = images.float().mean(1).unfold(1, 16, 16).unfold(2, 16, 16).flatten(3).std(-1).flatten(1)
    assert grey[truth].median() < 0.5 * grey[~truth].median()
    flat = true_outliers(torch.full((1, 3, 224, 224), 90, dtype=torch.uint8))
    busy = torch.full((1, 3, 224, 224), 90, dtype=torch.uint8)
    row, column = divmod(int(flat[0].nonzero()[0]), 14)
    busy[:, :, 16 * row : 16 * row + 8, 16 * column : 16 * column + 16] = 250
    assert not true_outliers(busy)[
        0, 14 * row + column
    ]  # no longer flat, so another of its cell is one
    with pytest.raises(ValueError, match="224"):
        true_outliers(torch.zeros(1, 3, 96, 96))
