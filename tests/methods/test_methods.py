"""What every registered method must do, with every detector.

A method that someone adds is tested here unasked.
"""

from __future__ import annotations

import functools
import re
import shutil
import sys
import warnings

import parity
import pytest
import torch
import torch.nn.functional as F
from conftest import parity_clip

from sfp.clip import load_clip
from sfp.clip.clip import l2_normalise
from sfp.errors import SFPError
from sfp.methods import METHODS as REGISTRY
from sfp.methods import Method, build_method, list_methods
from sfp.outliers import DETECTORS as DETECTOR_REGISTRY
from sfp.outliers import list_detectors
from sfp.refiners import REFINERS

METHODS, DETECTORS = list_methods(), list_detectors()
PUBLISHED = {
    "CLIP", "MaskCLIP", "CLIPSurgery", "GEM", "SCLIP", "ClearCLIP", "NACLIP", "CLIPtrase",
    "SC-CLIP", "CLIPSeg", "SFP", "SFP-release",
    "ProxyCLIP", "RF-CLIP", "PEARL", "ResCLIP", "DIH-CLIP", "FSA", "FreeCP", "FLOSS",
    "LPOSS", "LPOSS+", "CLIP-DINOiser", "Trident", "LaVG", "CorrCLIP", "CASS", "CaR",
}  # fmt: skip


def build(name: str, clip, **options):
    """A method; where it wants a second model, the windows' mean colours on CLIP's grid (CASS: its
    cells), and cuts of them where it wants masks.
    """

    def colours(windows: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(windows.float(), clip.trunk.patch)

    def cells(windows: torch.Tensor) -> torch.Tensor:
        return F.pixel_unshuffle(F.interpolate(windows.float(), (112, 112)), 8)

    for second in {"proxy", "dino", "dinoiser"} & set(REGISTRY.options(name)):
        options.setdefault(second, cells if name == "CASS" else colours)
    if "sam" in REGISTRY.options(name):
        options.setdefault("sam", "colour")
    if "masks" in REGISTRY.options(name):
        cut = dict(type="cut", backbone=colours, side=10 * clip.trunk.patch)
        options.setdefault("masks", cut)
    if REGISTRY.options(name).get("base") == "ProxyCLIP":
        options.setdefault("base", dict(type="ProxyCLIP", proxy=colours))
    return build_method(name, clip, **options)


def windows(*names: str, side: int = 224) -> torch.Tensor:
    """Windows of the parity cases, or their upper left parts."""
    return torch.cat([parity.case_image(f"vit12/{name}") for name in names])[..., :side, :side]


@functools.cache
def vit12(**options: object):
    """The network of ``parity_clip("vit12")``, loaded in another way."""
    return load_clip(pretrained=parity.state_dict("vit12"), device="cpu", **options)


@functools.cache
def shallow():
    """A ViT of 6 blocks."""
    kept = {
        key: value
        for key, value in parity.state_dict("vit12-p32").items()
        if not re.match(r"visual\..*resblocks\.([6-9]|1\d)\.", key)
    }
    return load_clip(pretrained=kept, device="cpu")


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_the_published_names_are_there():
    assert set(METHODS) >= PUBLISHED
    assert {"SOM", "L2", "LOF", "DBSCAN", "HDBSCAN", "AttentionColumn", "IsolationForest"} <= set(
        DETECTORS
    )


@pytest.mark.parametrize("name", METHODS)
def test_batch_equals_one_by_one(name, clip):
    """To rounding, with any weights; tests/test_determinism.py has the bits, and all detectors."""
    method = build(name, clip, purify=True, pm="SOM", purify_layers=[6, 11])
    batch = windows("win0", "win1", "win2")
    together = method(batch)
    assert together.shape == (3, 14, 14, clip.embed_dim)
    for i in range(3):
        assert relative(together[i], method(batch[i : i + 1])[0]) < 1e-5


@pytest.mark.parametrize("purify", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_non_square_windows(name, purify, clip):
    for shape, grid in (((112, 160), (7, 10)), ((160, 112), (10, 7)), ((230, 120), (14, 7))):
        features = build(name, clip, purify=purify)(parity.image("rect.0", *shape)[None])
        assert features.shape == (1, *grid, clip.embed_dim)
        assert torch.isfinite(features).all()


@pytest.mark.parametrize("spec", ["vit12-p32", "vit24-p14"])
@pytest.mark.parametrize("name", METHODS)
def test_other_depths_and_patches(name, spec):
    clip = parity_clip(spec)
    features = build(name, clip, purify=True)(parity.case_image(f"{spec}/win0"))
    assert features.shape == (1, *clip.trunk.native_grid, clip.embed_dim)
    assert torch.isfinite(features).all()


@pytest.mark.parametrize("pm", DETECTORS)
@pytest.mark.parametrize("name", METHODS)
def test_no_nan_on_constant_windows(name, pm, clip):
    flat = torch.stack([torch.zeros(3, 112, 112), torch.full((3, 112, 112), 2.0)])
    assert torch.isfinite(build(name, clip, purify=True, pm=pm, purify_layers=[3, 11])(flat)).all()


@pytest.mark.parametrize("empty", ["keep", "zero", "iterate", "nearest"])
@pytest.mark.parametrize(
    "options", [dict(pm="SOM", cls_factor=1e6, max_outliers=None), dict(pm="L2", ratio=1.0)]
)
@pytest.mark.parametrize("name", METHODS)
def test_no_nan_where_every_token_is_an_outlier(name, options, empty, clip):
    method = build(name, clip, purify=True, repair_empty=empty, **options)
    assert torch.isfinite(method(windows("win0", "win1", side=112))).all()


@pytest.mark.parametrize("name", METHODS)
def test_no_outliers_is_the_same_as_no_purification(name, clip):
    none = build(name, clip, purify=True, pm="SOM", cls_factor=0.0)(windows("win0"))
    plain = build(name, clip, purify=False)(windows("win0"))
    assert (
        relative(none, plain) < 1e-5
    )  # not bit for bit: SOM asks for explicit attention, the other runs fused


@pytest.mark.parametrize("name", METHODS)
def test_purification_and_its_layers_matter(name, clip):
    window = windows("win1")
    clean = build(name, clip, purify=False)(window)
    everywhere = build(name, clip, purify=True, purify_layers=range(1, 12))(window)
    late = build(name, clip, purify=True, purify_layers=[11])(window)
    assert not torch.allclose(clean, everywhere)
    assert not torch.allclose(everywhere, late)


@pytest.mark.parametrize("name", METHODS)
def test_parameters_untouched_and_no_gradients(name, clip):
    before = {key: value.clone() for key, value in clip.model.state_dict().items()}
    features = build(name, clip)(windows("win0", "win1"))
    assert not features.requires_grad
    assert not any(parameter.requires_grad for parameter in clip.model.parameters())
    for key, value in clip.model.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", METHODS)
def test_half_precision_is_close(name, precision):
    half = vit12(precision=precision)
    exact = build(name, parity_clip("vit12"), purify=False)(windows("win0"))
    rough = build(name, half, purify=False)(windows("win0"))
    assert torch.isfinite(rough).all()
    cosine = torch.cosine_similarity(rough.float(), exact, dim=-1)
    assert cosine.mean() > 0.995
    assert torch.isfinite(
        build(name, half, purify=True)(windows("win0"))
    ).all()  # decisions flip, so no closeness is asked


@pytest.fixture(scope="module")
def half_toyland():
    return load_clip("Toyland", device="cpu", precision="bf16")


@pytest.mark.parametrize("name", METHODS)
def test_half_precision_purified_reads_a_scene_alike(name, half_toyland, toyland_clip):
    """Single tokens at a detector's edge may flip, so labels are compared, not features."""
    from sfp import Segmenter
    from sfp.datasets import toyland
    from sfp.page.backend import TOYLAND_OPTIONS

    options = TOYLAND_OPTIONS.get(name, {})
    image, names = toyland.make_scene("tune", 3).image, list(toyland.CLASSES)
    exact, rough = (
        Segmenter(name, clip, purify=True, short_side=224, **options)(
            image, names, keep_scores=False
        ).labels
        for clip in (toyland_clip, half_toyland)
    )
    assert (exact == rough).mean() > 0.95


@pytest.mark.skipif(not shutil.which("c++"), reason="needs a C++ compiler")
def test_what_is_compiled_is_what_scores_come_from(toyland_clip):
    """Also where a method has its own ``encode``; a CUDA graph's outputs are copied."""
    method = build("CLIPSurgery", toyland_clip, feature_surgery=True, compiled="default")
    assert method.encode._torchdynamo_orig_callable.__name__ == "encode"
    outputs = torch.zeros(2)
    graphs = build("CLIPSurgery", toyland_clip, compiled="reduce-overhead")
    assert graphs._free(outputs).data_ptr() != outputs.data_ptr()
    assert method._free(outputs) is outputs


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++"), reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["SC-CLIP", "SFP"])
def test_compiled_it_is_the_same(name, toyland_clip):
    """One graph for trunk, detector, repair and last block.

    The last group of windows is smaller than the others.
    """
    torch._dynamo.reset()
    views = torch.randn(3, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    method = build(name, toyland_clip, compiled="default")
    torch.testing.assert_close(
        method(views), build(name, toyland_clip)(views), atol=2e-4, rtol=1e-3
    )
    assert torch._dynamo.utils.counters["graph_break"] == {}


def test_compiling_without_a_compiler(monkeypatch, toyland_clip):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SFPError, match="needs a C\\+\\+ compiler"):
        build("SFP", toyland_clip, compiled="default")


@pytest.mark.parametrize("name", METHODS)
def test_the_detector_option_replaces_the_methods_own(name, clip):
    """One purifier, never two.

    Its layers are those of the option or the method's own, and each layer is repaired once.
    """
    method = build(name, clip, purify=True, pm="DBSCAN", purify_layers=[4, 11])
    calls = []
    detector = method.purifier.detector

    def counting(state):
        calls.append(state.layer)
        return detector(state)

    counting.on_host = detector.on_host
    method.purifier.detector = counting
    method(windows("win1"))
    assert calls == [4, 11]
    assert len([hook for hook in method.hooks() if hook is method.purifier.hook]) == 1


@pytest.mark.parametrize("name", ["SC-CLIP", "SFP-release"])
def test_mid_layers_are_repaired_once(name, clip):
    """G_pre's tokens are repaired with the last layer's outliers, unless purification already acted
    at their layer.
    """
    method = build(name, clip, purify=True, pm="L2", purify_layers=[9, 11])
    repairs = []
    original = method.purifier.repair
    method.purifier.repair = lambda *args: repairs.append(1) or original(*args)
    method(windows("win1"))
    assert len(repairs) == 2
    method = build(name, clip, purify=True, pm="L2")
    method.purifier.repair = lambda *args: repairs.append(1) or original(*args)
    method(windows("win1"))
    assert len(repairs) == 2 + 2


@pytest.mark.parametrize("name", METHODS)
def test_narrow_heads(name):
    """Nothing assumes 64-wide heads: 4 heads of 32 give other features than 2 of 64."""
    narrow = vit12(head_width=32)
    assert narrow.trunk.heads == 4
    features = build(name, narrow, purify=True)(windows("win0"))
    assert features.shape == (1, 14, 14, 64) and torch.isfinite(features).all()
    if name != "MaskCLIP":
        assert not torch.allclose(
            features, build(name, parity_clip("vit12"), purify=True)(windows("win0")), atol=1e-3
        )


@pytest.mark.parametrize("name", METHODS)
def test_shallow_models(name):
    """Published layers that it lacks are scaled."""
    features = build(name, shallow())(parity.case_image("vit12-p32/win0"))
    assert features.shape == (1, 7, 7, 64) and torch.isfinite(features).all()


def test_constants_scaled_by_depth_are_warned_once():
    clip, method_module = parity_clip("vit12-p32"), sys.modules["sfp.methods._method"]
    method_module._warned.clear()
    with pytest.warns(
        UserWarning,
        match="SC-CLIP was published without constants for ViTs of 12 blocks with patch 32.*"
        "pre_layer=9",
    ):
        build_method("SC-CLIP", clip)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_method("SC-CLIP", clip)
        build_method("SC-CLIP", parity_clip("vit12"))  # B/16's are published
        method_module._warned.clear()
        build_method(
            "SC-CLIP", clip, pre_layer=8, post_layer=4, fuse_layers=(4, 9), res_cls=0.3
        )  # all given: nothing is chosen
        large = build_method(
            "SC-CLIP", parity_clip("vit24-p14")
        )  # L/14's, by its authors' answer in an issue
    assert (large.pre_layer, large.post_layer, large.fuse_layers, large.res_cls) == (
        17,
        7,
        (9, 19),
        0.1,
    )


@pytest.mark.parametrize("name", METHODS)
def test_positions_can_be_resized_in_another_way(name, clip):
    window = parity.case_image("vit12/sq256")
    method = build(name, clip)
    other = "size" if method.positional_resize == "scale" else "scale"
    changed = build(name, clip, positional_resize=other)(window)
    assert not torch.allclose(method(window), changed, atol=1e-4)
    native = windows("win0")
    torch.testing.assert_close(
        method(native), build(name, clip, positional_resize=other)(native), atol=0, rtol=0
    )


# methods whose scores need more of the text than its cosines, and what leaves that out
TEXT_INSIDE = {
    "CASS": dict(image_weight=0.0, patch_weight=0.0),
    "RF-CLIP": dict(image_weight=0.0, patch_weight=0.0),
    "ResCLIP": dict(sfr=False),
    "FSA": None,  # nothing would be left
    "CLIP-DINOiser": None,  # probabilities
    "LaVG": None,
}


# CaR's scores are maps of its own sentences: test_car.py
@pytest.mark.parametrize("name", [name for name in METHODS if name != "CaR"])
def test_scores_are_cosines_unless_asked_otherwise(name, clip):
    """Or where the text is inside the method; then they are others. Of what wraps another method,
    whose scores have another meaning, its base's; of Trident without SAM.
    """
    views, text = windows("win0", "win1"), parity.text_features()
    plain = TEXT_INSIDE.get(name, dict(sam=None) if name == "Trident" else {})
    if plain is not None:
        method = build(name, clip, **plain)
        method = getattr(method, "wrapped", method)
        torch.testing.assert_close(method.scores(views, text), l2_normalise(method(views)) @ text.T)
    if name in TEXT_INSIDE:
        method = build(name, clip)
        scores = method.scores(views, text)
        assert torch.isfinite(scores).all()
        cosines = l2_normalise(method(views)) @ text.T
        same = scores.shape == cosines.shape and torch.allclose(scores, cosines, atol=1e-3)
        assert not same  # LaVG's are at pixels


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("SPF", {}, ("Unknown method 'SPF'", "did you mean 'SFP'")),
        ("SFP", dict(pm="SOMM"), ("Unknown detector 'SOMM'", "did you mean 'SOM'")),
        ("SFP", dict(purify=False, pm="SOMM"), ("Unknown detector 'SOMM'",)),
        ("SFP", dict(sae_residuals="none"), ("sae_residuals", "did you mean 'sae_residual'")),
        ("SFP", dict(sae_residual="no"), ("sae_residual", "'no'", "none")),
        ("SFP", dict(purify_layers=[12]), ("purify_layers", "12", "1 to 11")),
        ("SFP", dict(hai_first_layer=0), ("hai_first_layer", "1 to 11")),
        ("SFP-release", dict(fuse_layers=(10, 4)), ("fuse_layers", "(10, 4)")),
        (
            "SFP-release",
            dict(fuse_layers=4),
            ("fuse_layers", "is 4; give a list, each a whole number"),
        ),
        ("SFP-release", dict(res_cls="much"), ("res_cls", "'much'", "finite number, or None")),
        ("SFP", dict(sae="no"), ("give True or False",)),
        ("SFP", dict(cls_factor="big"), ("cls_factor of detector SOM",)),
        ("SFP", dict(pm=dict(type="SOM", cls_factor="big")), ("cls_factor of detector SOM",)),
        ("SFP", dict(pm=dict(type="SOM", topk=3)), ("option of detector SOM 'topk'",)),
        ("SFP", dict(pm=dict(max_outliers=3)), ("has no type",)),
        ("SFP", dict(pm=dict(type="SOM", max_outliers=3), max_outliers=3), ("twice", "pm")),
        ("CLIPSurgery", dict(blocks=600), ("blocks of CLIPSurgery is 600", "12")),
        ("GEM", dict(depth=14), ("depth of GEM is 14", "12")),
        ("MaskCLIP", dict(variant="official2"), ("did you mean 'official'",)),
        ("NACLIP", dict(sigma=0), ("above 0",)),
        ("SFP", dict(repair_empty="drop"), ("'drop'", "keep")),
    ],
)
def test_wrong_options_are_one_sentence(name, options, words, clip):
    with pytest.raises(SFPError) as caught:
        build(name, clip, **options)(windows("win1"))
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_detectors_options_in_pm_or_beside_it(clip):
    nested = build("SFP", clip, pm=dict(type="SOM", max_outliers=3))
    flat = build("SFP", clip, pm="SOM", max_outliers=3)
    assert repr(nested.purifier.detector) == repr(flat.purifier.detector)
    assert nested.options() == flat.options() and nested.changed_options() == dict(max_outliers=3)


def test_an_option_without_a_type_is_refused():
    with pytest.raises(TypeError, match=r"Sloppy.side has no type; write side: int = 3"):

        class Sloppy(Method):
            side = 3

            def tokens(self, windows):
                return self.stream(windows)[:, 1:]


@pytest.mark.parametrize("registry", [REGISTRY, DETECTOR_REGISTRY, REFINERS], ids=lambda r: r.kind)
def test_every_option_is_documented(registry):
    """``help()`` shows it: a line in ``Args:`` of the class or of its base."""
    for name in registry.names():
        docs = "".join(cls.__doc__ or "" for cls in registry.get(name).__mro__[:-1])
        for option in registry.options(name):
            assert re.search(rf"^        (\w+, )*{option}(, \w+)*:", docs, re.M), f"{name}.{option}"
