"""ResCLIP against the authors' code, alone and in a batch, and its parts against slow readings."""

from __future__ import annotations

import clip_only
import parity
import pytest
import torch

import sfp
from sfp.clip.text_bank import TextBank
from sfp.datasets import toyland
from sfp.errors import SFPError
from sfp.methods import Method, build_method
from sfp.methods._sfr import feedback, patch_labels
from sfp.pipeline import Pipeline, Protocol
from sfp.stages import Text

CASES = clip_only.settings("resclip")
BASES = dict(
    resclip="NACLIP", naclip="NACLIP", clearclip="ClearCLIP", sclip="SCLIP", vanilla="CLIP"
)


def build(case: str):
    own = CASES[case]
    base = BASES[own["strategy"]]
    if base == "NACLIP":
        base = dict(type=base, sigma=own["gaussian_std"])
    method = build_method(
        "ResCLIP",
        clip_only.clip_of(case),
        base=base,
        rcs=own["use_rcs"],
        sfr=own["use_sfr"],
        rcs_mix=own["attn_rcs_mix"],
        sfr_mix=own["attn_sfr_mix"],
        sfr_scale=own["logit_scale"],
        temp_thd=own["temp_thd"],
    )
    assert method.wrapped.changes.residual == (own["arch"] == "w_resi")
    return method


def kept(method: Method, name: str) -> list[torch.Tensor]:
    """What a step of the method returns, from now on."""
    found, step = [], getattr(type(method), name)
    setattr(method, name, lambda *given: found.append(step(method, *given)) or found[-1])
    return found


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_equals_official_code_alone_and_in_a_batch(case):
    method, cases, text = build(case), clip_only.two("resclip", case), clip_only.text()
    windows = clip_only.windows_of("resclip", cases)
    for batch, members in ((windows[:1], cases[:1]), (windows, dict.fromkeys(cases))):
        view, grid = clip_only.view_of(method, batch), method.grid(batch)
        if method.sfr:
            steps = {name: kept(method, name) for name in ("second", "probabilities", "labels")}
            logits = method.score(view, text).permute(0, 3, 1, 2)
            found = clip_only.read_out(method, torch.cat(steps["second"]), grid)
            found["logits"] = logits
            found["prob"] = torch.cat(steps["probabilities"])[:, :, ::9, ::9]
            found["patch"] = torch.cat(steps["labels"])
            found["sfr"] = feedback(found["patch"])
            found["sfr_max"] = found["sfr"].flatten(1).amax(1, keepdim=True)
        else:
            found = clip_only.read_out(method, method.tokens(batch), grid)
        if method.rcs:
            found["rcs"] = method.before(batch)[1]
        for row, member in enumerate(members):
            own = {name: value[row] for name, value in found.items()}
            clip_only.assert_golden("resclip", member, own)


def test_every_golden_has_its_case():
    assert set(parity.cases("resclip")) in (set(), set(CASES))


def slow_feedback(labels: torch.Tensor) -> torch.Tensor:
    """B of labels (h, w), pair by pair."""
    height, width = labels.shape
    longest = max(height, width) - 1
    t = torch.linspace(0, 1, longest + 1)
    places = [(y, x) for y in range(height) for x in range(width)]
    like = torch.zeros(len(places), len(places))
    for i, u in enumerate(places):
        for j, v in enumerate(places):
            if labels[u] != labels[v]:
                continue
            far = max(abs(u[0] - v[0]), abs(u[1] - v[1]))
            path = [torch.tensor(u) * (1 - t[k]) + torch.tensor(v) * t[k] for k in range(far + 1)]
            stops = [tuple(stop.round().long().tolist()) for stop in path]
            joined = all(labels[stop] == labels[u] for stop in stops)
            like[i, j] = 1.0 if joined else float(torch.exp(torch.tensor(-far / longest)))
    reach = min(len(places), 31) // 2
    weights = torch.exp(-(torch.arange(-reach, reach + 1).float() ** 2) / 50)
    kernel = (weights / weights.sum())[None, None]
    smooth = torch.nn.functional.conv1d(like[:, None], kernel, padding=reach)[:, 0]
    return smooth / (smooth.sum(1, keepdim=True) + 1e-8)


@pytest.mark.parametrize("size", [(6, 9), (7, 4), (3, 3), (1, 5)])
def test_feedback_equals_a_slow_reading(size):
    labels = torch.randint(0, 3, (2, *size))
    found = feedback(labels)
    for own, expected in zip(found, labels, strict=True):
        torch.testing.assert_close(own, slow_feedback(expected), atol=1e-6, rtol=1e-5)


def test_one_patch_and_one_label():
    assert torch.allclose(feedback(torch.zeros(1, 1, 1, dtype=torch.long)), torch.ones(1, 1, 1))
    flat = feedback(torch.zeros(1, 8, 8, dtype=torch.long))
    assert torch.allclose(flat[0, 30, 10:50], flat[0, 30, 30].expand(40), atol=1e-3)


def test_ties_go_to_the_smallest_label():
    pixels = torch.tensor([[[3, 1, 2, 2, 9], [1, 3, 0, 0, 9], [9, 9, 9, 9, 9]]])
    assert patch_labels(pixels, 2, 10).tolist() == [[[1, 0]]]


def test_windows_in_small_groups_are_the_same(clip, monkeypatch):
    method, text = build_method("ResCLIP", clip), clip_only.text()
    windows = torch.stack([parity.image(f"batch{i}", 112, 144) for i in range(3)])
    view = clip_only.view_of(method, windows)
    whole = method.score(view, text)
    monkeypatch.setitem(ResCLIP_GLOBALS := type(method).second.__globals__, "_PIXEL_BYTES", 1)
    assert ResCLIP_GLOBALS["_PIXEL_BYTES"] == 1
    torch.testing.assert_close(method.score(view, text), whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("purify", [False, True])
def test_the_whole_way_with_purification(purify, toyland_clip):
    """Two images in a batch as alone, each with its own windows' labels."""
    sizes = dict(window=112, stride=56, short_side=112)
    segmenter = sfp.Segmenter("ResCLIP", toyland_clip, purify=purify, **sizes)
    images = [toyland.make_scene("tune", i).image for i in range(2)]
    names = list(toyland.CLASSES)[:6]
    for one, image in zip(segmenter.many(images, names), images, strict=True):
        assert (one.labels == segmenter(image, names).labels).mean() > 0.999


def test_the_second_pass_knows_all_queries(clip):
    """A further query changes the scores of the others, unless SFR is off."""
    window, vectors = parity.image("win1.1", 112, 144), clip_only.text().vectors
    for sfr in (True, False):
        method = build_method("ResCLIP", clip, sfr=sfr)
        walk = Pipeline(method, TextBank(clip, cache_dir=False), Protocol(window=0))
        (view,) = walk.views([window])
        few, all_of_them = (walk.score(view, Text(v)).canvas() for v in (vectors[:3], vectors))
        assert torch.allclose(few, all_of_them[:3], atol=1e-4) != sfr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(rcs_mix=(2.0,)), "give two numbers, tau and lambda"),
        (dict(sfr_mix=(1.0, 2.0, 3.0)), "sfr_mix of ResCLIP is (1.0, 2.0, 3.0)"),
        (dict(rcs=False, sfr=False), "leaves NACLIP; name that as the method"),
        (dict(rcs_layers=(6, 12)), "layers from 1 to 11"),
        (dict(temp_thd=1.5), "from 0 to 1"),
        (dict(sigma=3.0), "option of method ResCLIP 'sigma'"),
    ],
)
def test_wrong_options_are_one_sentence(options, words, clip):
    with pytest.raises(SFPError) as caught:
        build_method("ResCLIP", clip, **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)
