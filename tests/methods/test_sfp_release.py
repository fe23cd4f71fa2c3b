"""SFP's code of December 2025: goldens, a slow reading, what it refuses."""

from __future__ import annotations

import numpy as np
import parity
import pytest
import torch
from conftest import parity_clip

from sfp.clip.clip import l2_normalise
from sfp.clip.kernels import layer_norm
from sfp.errors import SFPError
from sfp.methods import build_method
from sfp.outliers import list_detectors, repair

INDEX = parity.read_index("index_sfp_2025_12")
CASES = INDEX["cases"]


def spec_of(case: str) -> str:
    return case.split("/")[0]


def build(case: str, **options):
    """The method as the index says that the case was made."""
    settings = {key: CASES[case][key] for key in ("pm", "fuse_layers", "res_cls")}
    clip = parity_clip(spec_of(case), INDEX["seed"])
    return build_method("SFP-release", clip, release="2025-12", **{**settings, **options})


def picture(case: str) -> torch.Tensor:
    with parity.seeded(INDEX["seed"]):
        return parity.image(CASES[case]["image"], *CASES[case]["size"])


def assert_golden(features: torch.Tensor, case: str) -> None:
    """Features (h, w, D) of one window equal the authors' code."""
    arrays, atol = parity.golden("sfp_2025_12"), INDEX["tolerance"]
    with parity.seeded(INDEX["seed"]):
        logits = l2_normalise(features) @ parity.text_features().T
    expected = arrays[f"{case}/logits"]
    np.testing.assert_allclose(logits.permute(2, 0, 1), expected, atol=atol["logits"], rtol=0)
    expected = arrays[f"{case}/feat"]  # the first patches
    found = features.flatten(0, 1)[: len(expected)]
    np.testing.assert_allclose(found, expected, atol=atol["feat"], rtol=0)


def partner(case: str) -> str:
    """The next case that differs in nothing but the picture; itself if there is none."""

    def kind(name: str) -> tuple:
        return spec_of(name), {**CASES[name], "image": ""}

    same = [other for other in CASES if kind(other) == kind(case)]
    return same[(same.index(case) + 1) % len(same)]


def test_every_golden_has_its_case():
    found = parity.cases("sfp_2025_12")
    assert not found or set(found) == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_equals_official_code(case):
    assert_golden(build(case)(picture(case)[None])[0], case)


@pytest.mark.parametrize("case", CASES)
def test_a_batch_of_two_equals_each_golden(case):
    other = partner(case)
    beside = picture(other) if other != case else picture(case).flip(-1)
    features = build(case)(torch.stack([picture(case), beside]))
    assert_golden(features[0], case)
    if other != case:
        assert_golden(features[1], other)


def test_the_options_of_the_index_are_the_defaults():
    """pm is named in each case, SOM is the default; layers and class weight need not be given."""
    for case in CASES:
        clip = parity_clip(spec_of(case), INDEX["seed"])
        method = build_method("SFP-release", clip, release="2025-12")
        assert list(method.fuse_layers) == CASES[case]["fuse_layers"]
        assert method.res_cls == CASES[case]["res_cls"] and method.pm == "SOM"


def slow_release(clip, window, *, outliers, fused=range(4, 12), correlation="kq", res_cls=0.3):
    """Y of one window (N, C): layers and heads one by one, from open_clip's own modules."""
    modules, heads = clip.model.visual.transformer.resblocks, clip.trunk.heads
    stream = [clip.trunk.embed(window)[0]]
    for module in modules[:-1]:
        stream.append(module(stream[-1][None])[0])  # X^l, never repaired
    last, grid = stream[-1], clip.trunk.grid_of(*window.shape[-2:])
    repaired = repair(last[None, 1:], outliers, grid)[0]

    def dec(patches, cls):
        normed = layer_norm(patches, modules[-1].ln_1)
        weight, bias = modules[-1].attn.in_proj_weight, modules[-1].attn.in_proj_bias
        parts = dict(zip("qkv", (normed @ weight.T + bias).chunk(3, -1), strict=True))
        mixed = []
        for head in range(heads):
            own = {letter: part.chunk(heads, -1)[head] for letter, part in parts.items()}
            maps = [(own[u] @ own[u].T / own[u].shape[1] ** 0.5).softmax(1) for u in correlation]
            mixed.append(sum(maps) @ own["v"] / len(maps))
        return modules[-1].attn.out_proj(torch.cat(mixed, 1)) + res_cls * cls

    y = dec(repaired, last[0])
    if fused:
        m = sum(stream[layer] for layer in fused)
        y = y + dec(m[1:], m[0])
    return y


@pytest.mark.parametrize(
    ("options", "slow"),
    [
        ({}, {}),
        (dict(pm="L2"), {}),
        (dict(purify=False), {}),
        (dict(fuse_layers=[]), dict(fused=())),
        (dict(fuse_layers=[[5, 5], [9, 11]]), dict(fused=(5, 9, 10, 11))),
        (dict(res_cls=0.1, pm="L2"), dict(res_cls=0.1)),
    ],
    ids=lambda options: ",".join(options) or "released",
)
@torch.inference_mode()
def test_equals_a_slow_reading(options, slow, clip):
    """On a window that is not square, for which the authors' code fails."""
    window = parity.image("win1.1", 224, 320)[None]
    method = build_method("SFP-release", clip, release="2025-12", **options)
    outliers = torch.zeros(1, 280, dtype=torch.bool)
    if method.purifier:
        masks = []
        detect = method.purifier.detector

        def kept(state):
            masks.append(detect(state))
            return masks[-1]

        kept.on_host = detect.on_host
        method.purifier.detector = kept
        method(window)
        outliers = masks[0][0]
        assert outliers.any()
    expected = slow_release(clip, window, outliers=outliers, **slow)
    torch.testing.assert_close(method.tokens(window)[0], expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "value"), [("pre_layer", 9), ("post_layer", 4), ("beta", 0.4)])
def test_options_of_the_other_release_are_refused(name, value, clip):
    with pytest.raises(SFPError) as caught:
        build_method("SFP-release", clip, release="2025-12", **{name: value})
    message = str(caught.value)
    assert f"{name} of SFP-release is {value!r}" in message and "\n" not in message
    assert f"leave {name} out, or give release='2026-03'" in message
    same = build_method("SFP-release", clip, **{name: value})
    window = parity.case_image("vit12/win1")
    assert torch.equal(same(window), build_method("SFP-release", clip)(window))


def test_unknown_releases(clip):
    with pytest.raises(SFPError, match="2025-12"):
        build_method("SFP-release", clip, release="2025-11")


def test_the_states_differ_and_report_their_options(clip):
    window = parity.case_image("vit12/win1")
    late = build_method("SFP-release", clip, release="2026-03")
    early = build_method("SFP-release", clip, release="2025-12")
    assert not torch.allclose(late(window), early(window), atol=1e-2)
    assert early.changed_options() == dict(release="2025-12") and late.changed_options() == {}
    similarity = ("pre_layer", "post_layer", "beta")
    assert [early.options()[name] for name in similarity] == [None] * 3
    assert [late.options()[name] for name in similarity] == [9, 4, 0.4]


@pytest.mark.parametrize("pm", list_detectors())
def test_it_is_finite_wherever_the_methods_are(pm, clip):
    """Constant windows and windows that are not square, as tests/methods/test_methods.py asks."""
    options = dict(release="2025-12", pm=pm, purify_layers=[3, 11])
    method = build_method("SFP-release", clip, **options)
    flat = torch.stack([torch.zeros(3, 224, 224), torch.full((3, 224, 224), 2.0)])
    assert torch.isfinite(method(flat)).all()
    assert method(parity.image("rect.0", 230, 120)[None]).shape == (1, 14, 7, clip.embed_dim)


@pytest.mark.parametrize("empty", ["keep", "zero", "iterate", "nearest"])
def test_every_token_may_be_an_outlier(empty, clip):
    options = dict(release="2025-12", repair_empty=empty, cls_factor=1e6, max_outliers=None)
    method = build_method("SFP-release", clip, **options)
    assert torch.isfinite(method(parity.case_image("vit12/win0"))).all()


def test_a_shallow_model_has_its_layers_scaled():
    from sfp.clip import load_clip

    weights = parity.state_dict("vit12-p32")
    deep = tuple(f"visual.transformer.resblocks.{i}." for i in range(6, 12))
    kept = {key: value for key, value in weights.items() if not key.startswith(deep)}
    clip = load_clip(pretrained=kept, device="cpu")
    with pytest.warns(UserWarning, match="fuse_layers"):
        method = build_method("SFP-release", clip, release="2025-12")
    assert method.fuse_layers == (2, 5) and method.pre_layer is None
    assert torch.isfinite(method(parity.case_image("vit12-p32/win0"))).all()
