"""NaN and infinite numbers end in a sentence with the layer and the precision, never in labels."""

from __future__ import annotations

import warnings

import pytest
import torch
from conftest import write_ranking
from safetensors.torch import load_file

import sfp
from sfp.clip.built_in import BUILT_IN
from sfp.datasets import toyland
from sfp.errors import SFPError
from sfp.methods import METHODS
from sfp.outliers import list_detectors
from sfp.page.backend import TOYLAND_OPTIONS
from sfp.refiners import REFINERS, Refiner

NAMES = ["sky", "sea", "sand", "boat"]
IMAGE = toyland.make_scene("val", 10).image[:128, :160]
SMALL = dict(text_cache=False, prompts="photo", short_side=64, window=64, stride=64)


@pytest.fixture(scope="module")
def overflowing():
    """Toyland in fp16 with an MLP whose output half precision can't hold, in layer 7."""
    weights = load_file(BUILT_IN["Toyland"])
    weights["visual.transformer.resblocks.6.mlp.c_proj.weight"] *= 2e4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sfp.load_clip("Toyland", weights, device="cpu", precision="fp16", quick_gelu=True)


def refused(match, method, clip, **options):
    segmenter = sfp.Segmenter(method, clip, **{**SMALL, **options})
    with pytest.raises(SFPError, match=match):
        segmenter(IMAGE, NAMES)
    return segmenter


@pytest.mark.parametrize("method", METHODS.names())
def test_fp16_overflow(method, overflowing, tmp_path):
    options = TOYLAND_OPTIONS.get(method, {})
    if method == "FLOSS":  # the shipped ranking is of other weights
        ranking = write_ranking(tmp_path / "ranking.json", overflowing, NAMES)
        options = dict(ranking=str(ranking))
    if METHODS.get(method).whole_images:
        options = dict(options, window=0)
    prompts = "imagenet80" if method == "FLOSS" else "photo"
    words = "tokens of layer 7 .* in float16; give precision='fp32' or 'bf16'"
    refused(words, method, overflowing, prompts=prompts, **options)


@pytest.mark.parametrize("pm", list_detectors())
def test_before_a_repair_hides_it(pm, overflowing):
    segmenter = refused("tokens of layer 7", "SFP", overflowing, purify=True, pm=pm)
    with pytest.raises(SFPError, match="tokens of layer 7"):
        segmenter.inspect(IMAGE, short_side=64, detectors=[pm])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_proxy(value, toyland_clip):
    def proxy(windows):
        maps = torch.rand(len(windows), 4, 8, 8)
        maps[0, 0, 3, 3] = value  # a single one, which masks would hide
        return maps

    refused(
        "proxy returned NaN or infinite numbers in float32", "ProxyCLIP", toyland_clip, proxy=proxy
    )


def test_a_method_of_its_own(toyland_clip, monkeypatch):
    CLIP = METHODS.get("CLIP")
    monkeypatch.setattr(
        CLIP, "score", lambda self, view, text: super(CLIP, self).score(view, text).log()
    )
    refused("scores of CLIP are NaN or infinite in fp32, though all 12", "CLIP", toyland_clip)


def test_a_refiner(toyland_clip, monkeypatch):
    class Broken(Refiner):
        def __call__(self, scores, view, text):
            return scores / 0.0

    monkeypatch.setitem(REFINERS._classes, "Broken", Broken)
    Broken.name = "Broken"
    refused("refinement by Broken made the scores", "CLIP", toyland_clip, refine=["Broken"])


@pytest.mark.parametrize("scale", [1e7, 1e39, 1e300, 1e-30])
def test_a_scale_that_overflows(scale, toyland_clip):
    with pytest.raises(SFPError, match="logit_scale is"):
        sfp.Segmenter("CLIP", toyland_clip, logit_scale=scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype, toyland_clip, tmp_path):
    """Nor do text vectors of another precision get into the cache."""
    segmenter = sfp.Segmenter("CLIP", toyland_clip, **{**SMALL, "text_cache": tmp_path})
    with torch.autocast("cpu", dtype), pytest.raises(SFPError, match="autocast is on"):
        segmenter(IMAGE, NAMES)
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_default_dtype(dtype, toyland_clip):
    segmenter = sfp.Segmenter("CLIP", toyland_clip, **SMALL)
    torch.set_default_dtype(dtype)
    try:
        with pytest.raises(SFPError, match="default dtype is"):
            segmenter(IMAGE, NAMES)
    finally:
        torch.set_default_dtype(torch.float32)
