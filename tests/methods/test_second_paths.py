"""CLIP-Surgery and GEM: the second path, and feature surgery."""

from __future__ import annotations

import numpy as np
import parity
import pytest
import torch
from conftest import parity_clip

from sfp.clip.clip import l2_normalise
from sfp.errors import SFPError
from sfp.methods import build_method
from sfp.methods._parts import second_path


@pytest.mark.parametrize("case", [case for case in parity.cases("clip_surgery")])
def test_feature_surgery_equals_official_code(case):
    method = build_method("CLIPSurgery", parity_clip(case.split("/")[0]), feature_surgery=True)
    found = method.scores(parity.case_image(case), parity.text_features())[0].permute(2, 0, 1)
    np.testing.assert_allclose(
        found, parity.golden("clip_surgery")[f"{case}/surgery"], atol=1e-5, rtol=0
    )


def test_feature_surgery_weighs_classes_only(clip):
    """The subtracted term is common to all classes: the argmax is that of w_c <f_i, t_c>."""
    window, text = parity.case_image("vit12/win1"), parity.text_features()
    cosines = build_method("CLIPSurgery", clip).scores(window, text)
    surgery = build_method("CLIPSurgery", clip, feature_surgery=True).scores(window, text)
    factor = (surgery[..., 0] - surgery[..., 1])[0, 0, 0]
    with torch.inference_mode():
        cls = l2_normalise(clip.encode_image(window))[0]
    weight = (2 * text @ cls).softmax(0)
    weight = weight / weight.mean()
    torch.testing.assert_close(
        factor,
        weight[0] * cosines[0, 0, 0, 0] - weight[1] * cosines[0, 0, 0, 1],
        atol=1e-5,
        rtol=1e-4,
    )


def test_feature_surgery_of_a_single_text_subtracts_the_empty_one(clip):
    window, text = parity.case_image("vit12/win1"), parity.text_features()[:1]
    method = build_method("CLIPSurgery", clip, feature_surgery=True)
    empty = l2_normalise(clip.encode_text(clip.tokenize([""])))
    expected = build_method("CLIPSurgery", clip).scores(window, text - empty)
    torch.testing.assert_close(method.scores(window, text), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["CLIPSurgery", "GEM"])
@torch.inference_mode()
def test_the_original_path_is_ordinary_clip(name, clip):
    window = parity.case_image("vit12/win0")
    method = build_method(name, clip)
    new, stream = second_path(method, window, 6, lambda state: torch.zeros_like(state.inputs))
    assert torch.equal(stream, clip.trunk.run(window, last=11))
    assert torch.equal(new, clip.trunk.run(window, last=6))  # without terms it stays X^{L-6}


@pytest.mark.parametrize(
    ("name", "options"), [("CLIPSurgery", dict(blocks=0)), ("GEM", dict(depth=1))]
)
def test_without_blocks_it_is_ordinary_clip(name, options, clip):
    window = parity.case_image("vit12/win0")
    assert torch.equal(
        build_method(name, clip, **options)(window), build_method("CLIP", clip)(window)
    )


@torch.inference_mode()
def test_gem_equals_a_slow_reading(clip):
    """One block, loops over heads."""
    window, trunk = parity.case_image("vit12/win2"), clip.trunk
    block, inputs = trunk.blocks[-1], trunk.run(window, last=11)
    normed = block.normed(inputs)
    beta = float(normed[0].norm(dim=1).mean()) / 64**0.5
    parts = block.qkv(normed)
    heads = []
    for head in range(trunk.heads):
        values, outputs = parts[2][0, head], []
        for u in (part[0, head] for part in parts):
            u = u / u.norm(dim=1, keepdim=True)
            u = (beta * u @ u.T).softmax(1) @ u
            u = u / u.norm(dim=1, keepdim=True)
            outputs.append((beta * u @ u.T).softmax(1) @ values)
        heads.append(sum(outputs) / 3)
    expected = (inputs + block.project(torch.stack(heads)[None]))[0, 1:]
    torch.testing.assert_close(
        build_method("GEM", clip, depth=2).tokens(window)[0], expected, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(
    "options", [dict(iterations=0), dict(iterations=2), dict(temperature=10.0), dict(depth=4)]
)
def test_gems_options_change_the_features(options, clip):
    window = parity.case_image("vit12/win0")
    assert not torch.allclose(
        build_method("GEM", clip)(window), build_method("GEM", clip, **options)(window)
    )


def test_no_state_is_kept_between_window_sizes(clip):
    """CLIP_Surgery's own code overwrites its positions at each new size."""
    method = build_method("CLIPSurgery", clip)
    before = method(parity.case_image("vit12/win0"))
    method(parity.case_image("vit12/sq256"))
    assert torch.equal(method(parity.case_image("vit12/win0")), before)


@pytest.mark.parametrize(
    ("name", "options"),
    [("CLIPSurgery", dict(blocks=-1)), ("GEM", dict(depth=0)), ("GEM", dict(iterations=-1))],
)
def test_wrong_options(name, options, clip):
    with pytest.raises(SFPError, match=r"at least [01]|is -1, which would be -1 blocks"):
        build_method(name, clip, **options)
