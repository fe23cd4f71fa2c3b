"""The probe of over-active channels: a channel that was made so is found, by program and option."""

from __future__ import annotations

import parity
import pytest
import torch
from conftest import ROOT

from sfp.clip import load_clip
from sfp.experiments.channels import over_active
from sfp.methods import build_method


def test_a_channel_that_the_last_layers_raise_is_found():
    weights = parity.state_dict("vit12")
    for layer in (7, 9):
        weights[f"visual.transformer.resblocks.{layer}.mlp.c_proj.bias"][77] += 40.0
    clip = load_clip(pretrained=weights, device="cpu")
    windows = torch.stack([parity.image(f"batch{i}", 112, 144) for i in range(2)])
    shares = over_active(clip, [windows[:1], windows[1:]])
    assert int(shares.argmax()) == 77 and 0.5 < float(shares[77]) <= 1
    assert float(shares.sum() - shares[77]) < 0.1
    torch.testing.assert_close(over_active(clip, [windows]), shares, atol=1e-3, rtol=0)
    # and RF-CLIP flags it
    plain, probed = (
        build_method("RF-CLIP", clip, channels=channels)(windows) for channels in ([5], [77])
    )
    assert not torch.allclose(plain, probed, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sigma", "100"], "give a smaller --sigma"),
        (["--images", "0"], "--images is 0"),
        (["--sigma", "nan"], "--sigma nan"),
    ],
)
def test_mistakes_of_the_program(arguments, words, tool, tmp_path, monkeypatch):
    monkeypatch.setenv("SFP_DATA", str(tmp_path))
    few = ["--images", "1", *arguments, "--cfg-options", "test_dataloader.dataset.scenes=1"]
    code, _, error = tool("probe_channels", ROOT / "configs/cfg_toyland.py", *few)
    assert code == 2 and words in error


def test_the_program_prints_the_option(tool, tmp_path, monkeypatch):
    monkeypatch.setenv("SFP_DATA", str(tmp_path))
    few = ["--images", "1", "--sigma", "2", "--cfg-options", "test_dataloader.dataset.scenes=1"]
    code, output, error = tool("probe_channels", ROOT / "configs/cfg_toyland.py", *few)
    assert code == 0, error
    last = output.strip().splitlines()[-1]
    assert last.startswith("model.channels=[") and last.endswith(" model.sigma=2")
