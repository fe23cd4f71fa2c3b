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
    assert rows["open_clip", 1]["ratio"] == rows["open_clip", 1]["ratio_min"] == 1.0
    # 12 blocks of 50 tokens: 24 C^2 for the linear maps and 4 T C for attention per token, patch
    # embedding, projection
    tokens, width = 50, 768
    block = tokens * (24 * width**2 + 4 * tokens * width)
    expected = 12 * block + 2 * 49 * 3 * 32 * 32 * width + 2 * width * 512
    assert rows["open_clip", 2]["gflop_per_window"] == pytest.approx(expected / 1e9, rel=1e-3)
    dense = expected + 48 * 2 * width * 512  # all patches are projected, not the class token
    assert rows["CLIP", 2]["gflop_per_window"] == pytest.approx(dense / 1e9, rel=1e-3)
    assert rows["CLIP", 2]["peak_mib"] is None or rows["CLIP", 2]["peak_mib"] >= 0
    (clip, release) = result["images"]
    assert clip["windows"] == 2 and clip["gflop"] == pytest.approx(2 * dense / 1e9, rel=2e-2)
    assert set(release["stages_ms"]) == {
        "decode",
        "trunk",
        "method",
        "text similarity",
        "stitch",
        "decode labels",
    }
    assert release["ratio_min"] <= release["ratio"] <= release["ratio_max"]
    assert result["texts"]["texts"] == 160 and result["texts"]["second"] < result["texts"]["first"]


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
