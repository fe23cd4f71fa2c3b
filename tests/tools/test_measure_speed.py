"""tools/measure_speed.py: what it counts is right; what it times is there."""

from __future__ import annotations

import json

import pytest


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


def test_operations_ratios_and_stages(tool, quick, tmp_path):
    out = tmp_path / "speed.json"
    code, text, error = tool(
        "measure_speed",
        *quick,
        "--methods",
        "CLIP",
        "SFP-release:pm=L2,topk=5",
        "--batch",
        2,
        1,
        "--texts",
        2,
        "--out",
        out,
    )
    assert code == 0, error
    assert "| SFP-release:pm=L2,topk=5 | 2 |" in text and "2 classes x 80 prompts" in text
    result = json.loads(out.read_text())
    assert len(result["forward"]) == 6 and result["threads"] == 1 and result["weights"] == "made up"
    rows = {(row["method"], row["batch"]): row for row in result["forward"]}
    # 12 blocks of 50 tokens: 24 C^2 for the linear maps and 4 T C for attention per token, patch
    # embedding, projection
    tokens, width = 50, 768
    block = tokens * (24 * width**2 + 4 * tokens * width)
    expected = 12 * block + 2 * 49 * 3 * 32 * 32 * width + 2 * width * 512
    assert rows["open_clip", 2]["gflop_per_window"] == pytest.approx(expected / 1e9, rel=1e-3)
    dense = expected + 48 * 2 * width * 512  # all patches are projected, not the class token
    assert rows["CLIP", 2]["gflop_per_window"] == pytest.approx(dense / 1e9, rel=1e-3)
    (clip, release) = result["images"]
    assert clip["windows"] == 2 and clip["gflop"] == pytest.approx(2 * dense / 1e9, rel=2e-2)
    assert set(release["stages_ms"]) == {
        "decode",
        "trunk",
        "method",
        "text similarity",
        "refine",
        "stitch",
        "decode labels",
    }
    # no MLP in the last block, but a second stream and similarities
    assert 0.9 < release["gflop"] / clip["gflop"] < 1.1 and release["gflop"] != clip["gflop"]
    assert result["texts"]["texts"] == 160 and min(map(float, result["texts"].values())) > 0


def test_passes_and_operations_of_second_models(tool, quick, tmp_path):
    """Those of made-up weights of the sizes that the option names, read by the method itself."""
    out, tiny = tmp_path / "speed.json", "LPOSS:dino=vit_tiny_patch16_224"
    methods = [tiny, "CLIP-DINOiser"]
    code, text, error = tool(
        "measure_speed", *quick, "--methods", *methods, "--batch", 1, "--out", out
    )
    assert code == 0, error
    assert "Methods with second models" in text and f"| {tiny} | 2 | 2 | dino 2 |" in text
    spread, learned = json.loads(out.read_text())["images"]
    assert spread["models"]["CLIP"]["passes"] == learned["models"]["CLIP"]["passes"] == 2
    # 11 blocks of 197 tokens of 192 channels; queries, keys and values of the twelfth; 2 windows
    tokens, width = 197, 192
    block = tokens * (24 * width**2 + 4 * tokens * width)
    wanted = 11 * block + 196 * 6 * width**2 + 2 * 196 * 3 * 16 * 16 * width
    dino = spread["models"]["dino"]
    assert dino == dict(passes=2, gflop=pytest.approx(2 * wanted / 1e9, rel=1e-3))
    assert spread["gflop"] > 0.9 * spread["clip_gflop"] + dino["gflop"]
    convolution = 2 * 2 * 49 * 256 * 9 * 768
    assert learned["models"]["dinoiser"] == dict(
        passes=0, gflop=pytest.approx(convolution / 1e9, rel=1e-3)
    )
    assert spread["over_clip"]["ratio"] > 0 and spread["clip_gflop"] > 0


def test_table_9(tool, quick):
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
