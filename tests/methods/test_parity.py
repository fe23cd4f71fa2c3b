"""Each method equals its authors' code on the same weights, one window at a time and in a batch
(tests/parity.py).
"""

from __future__ import annotations

import numpy as np
import parity
import pytest
import torch
from conftest import parity_clip

from sfp.clip.clip import l2_normalise
from sfp.clip.trunk import Hook
from sfp.methods import build_method
from sfp.methods.naclip import gaussian

# golden file: method, its options. Tolerances are those that come with the goldens: ten times
# float32's own error.
FILES = {
    "vanilla": ("CLIP", {}),
    "maskclip": ("MaskCLIP", dict(variant="bare")),
    "clearclip": ("ClearCLIP", {}),
    "sclip": ("SCLIP", {}),
    "naclip": ("NACLIP", {}),
    "clip_surgery": ("CLIPSurgery", {}),
    "gem": ("GEM", {}),
    "cliptrase": ("CLIPtrase", {}),
    # the goldens were made with the 12-layer indices on every depth
    "scclip": ("SC-CLIP", dict(pre_layer=9, post_layer=4, fuse_layers=(4, 10), res_cls=0.3)),
    "sfp_som": ("SFP-release", dict(pm="SOM")),
    "sfp_l2": ("SFP-release", dict(pm="L2")),
    "sfp_lof": ("SFP-release", dict(pm="LOF")),
}
CASES = [(file, case) for file in FILES for case in parity.cases(file)]


def build(file: str, case: str):
    name, options = FILES[file]
    if "_res" in case:
        options = {**options, "res_cls": float(case.split("_res")[1])}
    if "_deep" in case:
        options = dict(pre_layer=17, post_layer=7, fuse_layers=(7, 20), res_cls=0.2)
    return build_method(name, parity_clip(case.split("/")[0]), **options)


@pytest.mark.parametrize(("file", "case"), CASES)
def test_equals_official_code(file, case):
    arrays = parity.golden(file)
    features = build(file, case)(parity.case_image(case))[0]
    logits = l2_normalise(features) @ parity.text_features().T
    np.testing.assert_allclose(logits.permute(2, 0, 1), arrays[f"{case}/logits"], atol=1e-5, rtol=0)
    tok = arrays[f"{case}/tok"]
    np.testing.assert_allclose(
        features.flatten(0, 1)[tok], arrays[f"{case}/feat"], atol=5e-5, rtol=0
    )


@pytest.mark.parametrize(
    ("file", "case"), [c for c in CASES if c[0].startswith("sfp_") or c[0] == "scclip"]
)
def test_outliers_and_their_repair_equal_official_code(file, case):
    arrays, method = parity.golden(file), build(file, case)
    states = []
    last = method.trunk.layers - 1
    method.trunk.run(parity.case_image(case), method.hooks(Hook(states.append, [last])), last=last)
    (state,) = states
    np.testing.assert_array_equal(state.outliers[0].nonzero()[:, 0], arrays[f"{case}/outlier_idx"])
    np.testing.assert_allclose(
        state.patches[0, arrays[f"{case}/tok"]], arrays[f"{case}/smoothed"], atol=2e-4, rtol=0
    )
    if f"{case}/som_cls" in arrays:
        factor = 5 * method.res_cls
        np.testing.assert_allclose(
            factor * state.cls_row.mean(1)[0], arrays[f"{case}/som_cls"], atol=3e-5, rtol=0
        )
        np.testing.assert_allclose(
            state.diagonal.mean(1)[0], arrays[f"{case}/som_self"], atol=3e-5, rtol=0
        )
    elif f"{case}/l2" in arrays:
        np.testing.assert_allclose(state.outlier_scores[0], arrays[f"{case}/l2"], atol=3e-4, rtol=0)
    else:
        np.testing.assert_allclose(
            state.outlier_scores[0], arrays[f"{case}/lof"], atol=1e-4, rtol=0
        )


def batch_of(file: str) -> list[str]:
    """The first three cases of a file that differ in their picture alone."""
    kinds: dict[tuple, list[str]] = {}
    for case in parity.cases(file):
        _, _, changes = case.partition("_")
        kinds.setdefault((case.split("/")[0], changes, parity.case_image(case).shape), []).append(
            case
        )
    return max(kinds.values(), key=len)[:3]


@pytest.mark.parametrize("file", [file for file in FILES if parity.cases(file)])
def test_a_batch_of_windows_equals_each_golden(file):
    cases, arrays = batch_of(file), parity.golden(file)
    assert len(cases) > 1
    batch = torch.cat([parity.case_image(case) for case in cases])
    logits = l2_normalise(build(file, cases[0])(batch)) @ parity.text_features().T
    for row, case in zip(logits, cases, strict=True):
        expected = arrays[f"{case}/logits"]
        np.testing.assert_allclose(row.permute(2, 0, 1), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("grid", [(14, 14), (14, 20)])
def test_naclips_gaussian_equals_official_code(grid):
    h, w = grid
    omega = gaussian(grid, 5.0)
    expected = parity.golden("naclip")[f"gauss_{h}x{w}_row"]
    np.testing.assert_allclose(
        omega[1:, 1:][[0, w + 3, h * w // 2 + 5]], expected, atol=1e-6, rtol=0
    )
    assert torch.equal(omega, omega.T) and not omega[0].any() and (omega.diagonal()[1:] == 1).all()


@pytest.mark.parametrize("spec", parity.SPECS)
def test_image_and_text_embeddings_equal_official_clip(spec):
    arrays, clip = parity.golden("vanilla"), parity_clip(spec)
    np.testing.assert_allclose(
        clip.encode_text(parity.token_ids()), arrays[f"{spec}/text_embed"], atol=5e-5, rtol=0
    )
    for case in [
        key.rpartition("/")[0]
        for key in arrays
        if key.startswith(f"{spec}/") and key.endswith("image_embed")
    ]:
        np.testing.assert_allclose(
            clip.encode_image(parity.case_image(case))[0],
            arrays[f"{case}/image_embed"],
            atol=5e-5,
            rtol=0,
        )
