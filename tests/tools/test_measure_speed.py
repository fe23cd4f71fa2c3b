"""tools/measure_speed.py: what it counts is right; what it times is there."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import open_clip
import pytest
import torch
from conftest import ROOT

from sfp.backbones.second_clip import SecondCLIP
from sfp.clip.models import plain_vits
from sfp.methods import build_method
from sfp.stages import Picture

WIDTH, EMBED = 192, 128  # of a ViT-B/32 that is a quarter as wide


@pytest.fixture
def narrow(monkeypatch):
    """The ViT-B/32 of open_clip is narrow while the test lasts; ours follows its weights."""
    plain_vits()  # keeps open_clip's own configs
    config = open_clip.get_model_config("ViT-B-32-quickgelu")
    config["embed_dim"] = EMBED
    config["vision_cfg"]["width"] = WIDTH
    config["text_cfg"] |= dict(width=EMBED, heads=2)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32-quickgelu", config)


@pytest.fixture
def quick():
    return [
        "--model",
        "ViT-B/32",
        "--image",
        60,
        80,
        "--short-side",
        224,
        "--classes",
        5,
        "--rounds",
        1,
        "--threads",
        1,
    ]


# over 5 s: open_clip, three methods and each of their stages, timed and counted
def test_operations_ratios_and_stages(tool, quick, narrow, tmp_path):
    out = tmp_path / "speed.json"
    code, text, error = tool(
        "measure_speed",
        *quick,
        "--methods",
        "CLIP",
        "SFP-release:pm=L2,topk=5",
        "CLIP-DINOiser",
        "--batch",
        2,
        1,
        "--texts",
        1,
        "--out",
        out,
    )
    assert code == 0, error
    assert "| SFP-release:pm=L2,topk=5 | 2 |" in text and "1 classes x 80 prompts" in text
    result = json.loads(out.read_text())
    assert len(result["forward"]) == 8 and result["threads"] == 1 and result["weights"] == "made up"
    rows = {(row["method"], row["batch"]): row for row in result["forward"]}
    # 12 blocks of 50 tokens: 24 C^2 for the linear maps and 4 T C for attention per token, patch
    # embedding, projection
    tokens, width = 50, WIDTH
    block = tokens * (24 * width**2 + 4 * tokens * width)
    expected = 12 * block + 2 * 49 * 3 * 32 * 32 * width + 2 * width * EMBED
    assert rows["open_clip", 2]["gflop_per_window"] == pytest.approx(expected / 1e9, rel=1e-3)
    dense = expected + 48 * 2 * width * EMBED  # all patches are projected, not the class token
    assert rows["CLIP", 2]["gflop_per_window"] == pytest.approx(dense / 1e9, rel=1e-3)
    forms = result["attention_ms"]
    assert set(forms) == {"fused", "explicit", "taken"} and min(forms.values()) > 0
    (clip, release, learned) = result["images"]
    assert "Methods with second models" in text and "| CLIP-DINOiser | 2 | 2 | dinoiser 0 |" in text
    assert learned["over_clip"]["ratio"] > 0
    assert learned["clip_gflop"] == pytest.approx(2 * dense / 1e9, rel=1e-2)
    assert clip["windows"] == 2 and clip["gflop"] == pytest.approx(2 * dense / 1e9, rel=2e-2)
    assert set(release["stages_ms"]) == {
        "decode",
        "look",
        "trunk",
        "method",
        "text similarity",
        "refine",
        "stitch",
        "decode labels",
    }
    # no MLP in the last block, but a second stream and similarities
    assert 0.9 < release["gflop"] / clip["gflop"] < 1.1 and release["gflop"] != clip["gflop"]
    assert result["texts"]["texts"] == 80 and min(map(float, result["texts"].values())) > 0


def test_passes_and_operations_of_second_models(tmp_path, clip):
    """Of made-up weights of the sizes that the option names, read by the method itself."""
    program = runpy.run_path(str(ROOT / "tools/measure_speed.py"))
    options = program["with_made_up"](
        "LPOSS", dict(dino="vit_tiny_patch16_224", base="CLIP-DINOiser"), clip, tmp_path
    )
    assert Path(options["dino_weights"]).is_file() and options["base"]["dinoiser_weights"]
    method = build_method("LPOSS", clip, **options)
    windows = torch.randn(2, 3, 224, 224)
    models = {"CLIP": SecondCLIP(clip), **method.backbones}
    total, counts = program["operations"](lambda: method.run(windows), models)
    # 11 blocks of 197 tokens of 192 channels; queries, keys and values of the twelfth
    tokens, width = 197, 192
    block = tokens * (24 * width**2 + 4 * tokens * width)
    wanted = 11 * block + tokens * 6 * width**2 + 2 * 196 * 3 * 16 * 16 * width
    assert counts["dino"] == dict(passes=2, gflop=pytest.approx(2 * wanted / 1e9, rel=1e-2))
    convolution = 2 * 196 * 256 * 9 * 128
    assert counts["dinoiser"] == dict(
        passes=0, gflop=pytest.approx(2 * convolution / 1e9, rel=1e-3)
    )
    assert counts["CLIP"]["passes"] == 2 and total > 2 * (wanted + convolution) / 1e9
    assert program["with_made_up"]("ProxyCLIP", dict(proxy="colour"), clip, tmp_path) == dict(
        proxy="colour"
    )
    masks = "cut:backbone=vit_tiny_patch16_224,side=96"
    (found,) = program["with_made_up"]("LaVG", dict(masks=masks), clip, tmp_path).values()
    assert (found["type"], found["side"]) == ("cut", 96)
    regions = build_method("LaVG", clip, masks=found).look(Picture(windows[0]))
    assert regions.shape[1:] == (224, 224)


def test_table_9(tool, quick):
    """Over 5 s: parameters and operations are those of a ViT-B/32 of full size."""
    code, text, _ = tool(
        "measure_speed", *quick, "--methods", "SCLIP", "--batch", 1, "--layout", "table9"
    )
    assert code == 0 and text.splitlines()[0] == "| method | FLOPs(G) | Params(M) | FPS |"
    method, flops, parameters, rate = text.splitlines()[2].strip("| ").split(" | ")
    assert (
        method == "SCLIP"
        and float(flops) == pytest.approx(4.4, abs=0.1)
        and parameters == "151.3"
        and float(rate) > 0
    )
