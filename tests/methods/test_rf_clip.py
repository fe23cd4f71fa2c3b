"""RF-CLIP against the authors' code, alone and in a batch, as a method and as a segmentor."""

from __future__ import annotations

import sys
import warnings

import clip_only
import numpy as np
import parity
import pytest
import torch
from conftest import parity_clip

import sfp
from sfp.clip.clip import l2_normalise
from sfp.clip.text_bank import TextBank
from sfp.clip.trunk import Hook
from sfp.datasets import toyland
from sfp.errors import SFPError
from sfp.methods import build_method
from sfp.methods._adapted_text import adapt_text, cluster_queries
from sfp.methods._parts import attention_map, cosine_similarity
from sfp.methods.rf_clip import refocus
from sfp.pipeline import Pipeline, Protocol, Task
from sfp.stages import Picture, Text

CASES = clip_only.settings("rfclip")
PROTOCOLS = clip_only.settings("segmentor_rfclip")


def build(case: str):
    own = CASES[case]
    options = dict(refocus=True, refocus_threshold=own["threshold"]) if "strategy" in own else {}
    return build_method(
        "RF-CLIP",
        clip_only.clip_of(case),
        channels=own["sink_channel"],
        sigma=own["sigma"],
        alpha=own["alpha"],
        beta=own["beta"],
        **options,
    )


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_equals_official_code_alone_and_in_a_batch(case):
    method, cases = build(case), clip_only.two("rfclip", case)
    windows = clip_only.windows_of("rfclip", cases)
    rows = method.patch_rows(windows)
    for batch, members in ((windows[:1], cases[:1]), (windows, dict.fromkeys(cases))):
        tokens, cls = method.walk(batch)
        found = clip_only.read_out(method, tokens, method.grid(batch))
        found["cls"] = cls
        stream, guide, *_ = method.layers(batch)
        found |= dict(stream=stream, guide=guide, sim=cosine_similarity(guide[:, rows]))
        masks, maps = [], []

        def gather(state, masks=masks, maps=maps, rows=rows):
            masks.append(method.flagged(state.patches))
            weights = attention_map(state.q, state.k)
            maps.append(refocus(weights, rows, method.refocus_threshold, method.refocus_share))
            return method.denoise(state)

        method.all_blocks(batch, gather)
        found |= dict(mask=torch.stack(masks, 1), attn1=maps[0])
        for row, member in enumerate(members):
            own = {name: value[row] for name, value in found.items()}
            clip_only.assert_golden("rfclip", member, own)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_equals_the_official_segmentor(protocol, clip):
    own, arrays = PROTOCOLS[protocol], parity.golden("segmentor_rfclip")
    method = build_method(
        "RF-CLIP",
        clip_only.clip_of("vit12/full"),
        channels=own["sink_channel"],
        sigma=own["sigma"],
        image_weight=own["global_semantics_weight"],
        patch_weight=own["mean_vector_weight"],
        cluster_distance=own["h_threshold"],
        class_vector="window" if own["dataset"] == "city_scapes" else "image",
    )
    settings = Protocol(window=own["crop"], stride=own["stride"], logit_scale=own["logit_scale"])
    walk = Pipeline(method, TextBank(clip, cache_dir=False), settings)
    with parity.seeded(clip_only.INDEX["seed"]):
        image = parity.image(own["image"], *own["size"])
    text, size = Text(torch.from_numpy(arrays["text"])), tuple(own["ori_shape"])
    (view,) = walk.views([image])
    likeness, adapted = method.adapted(view, text)
    found = dict(global_sim=likeness, adjusted=adapted)
    found["logits"] = walk.score(view, text).resized(size).canvas()[:, ::9, ::9]
    labels = walk.segment([image], [Task(text, settings)], [size])[0][0][0]
    clip_only.assert_labels("segmentor_rfclip", protocol, labels)
    clusters = cluster_queries(text.vectors, own["h_threshold"])
    found |= {name: arrays[f"{protocol}/{name}"] for name in ("labels", "sure")}  # compared above
    clip_only.assert_golden("segmentor_rfclip", protocol, {**found, "clusters": clusters})
    both = walk.segment([image.flip(-1), image], [Task(text, settings)], [size] * 2)[0]
    clip_only.assert_labels("segmentor_rfclip", protocol, both[1][0])


def test_every_golden_has_its_case():
    assert set(parity.cases("rfclip")) in (set(), set(CASES))
    assert set(parity.cases("segmentor_rfclip")) in (set(), set(PROTOCOLS))


# ------------------------------------------------------------------ the text
def test_complete_linkage_equals_a_slow_reading():
    vectors = l2_normalise(torch.randn(12, 8, generator=torch.Generator().manual_seed(3)))
    distance = 1 - vectors @ vectors.T
    groups = [{i} for i in range(12)]
    while True:
        pairs = [
            (float(max(distance[i, j] for i in a for j in b)), a, b)
            for k, a in enumerate(groups)
            for b in groups[k + 1 :]
        ]
        least, a, b = min(pairs, key=lambda pair: pair[0])
        if least > 0.6:
            break
        groups = [group for group in groups if group not in (a, b)] + [a | b]
    labels = cluster_queries(vectors, 0.6)
    found = [set(np.flatnonzero(labels == k).tolist()) for k in range(int(labels.max()) + 1)]
    assert sorted(map(sorted, found)) == sorted(map(sorted, groups)) and 1 < len(groups) < 12
    assert cluster_queries(vectors[:1], 0.6).tolist() == [0]


@pytest.mark.parametrize("patches", [1, 2, 30])
def test_the_text_moves_as_a_slow_reading_says(patches):
    features, vectors = l2_normalise(torch.randn(3, patches, 8)), l2_normalise(torch.randn(5, 8))
    likeness, clusters = torch.randn(3, 5), torch.tensor([0, 1, 0, 2, 0])
    found = adapt_text(features, vectors, likeness, clusters, 0.3)
    for image in range(3):
        expected = vectors.clone()
        for cluster in range(3):
            best = max((clusters == cluster).nonzero()[:, 0], key=lambda q: likeness[image, q])
            nearest = (features[image] @ vectors[best]).argsort(descending=True)[:2]
            mu = l2_normalise(features[image, nearest].mean(0))
            expected[best] = l2_normalise(0.7 * vectors[best] + 0.3 * mu)
        torch.testing.assert_close(found[image], expected)


def test_the_clusters_of_a_vocabulary_are_made_once(monkeypatch):
    calls, module = [], sys.modules["sfp.methods._adapted_text"]
    linkage = module.linkage
    monkeypatch.setattr(module, "linkage", lambda *a, **k: calls.append(1) or linkage(*a, **k))
    vectors = l2_normalise(torch.randn(6, 9))
    for _ in range(3):
        cluster_queries(vectors.clone(), 0.5)
    assert len(calls) == 1


def test_the_class_vector_is_that_of_the_whole_image_once(toyland_clip):
    image = toyland.make_scene("tune", 0).image
    names, seen = list(toyland.CLASSES), []
    segmenter = sfp.Segmenter("RF-CLIP", toyland_clip)
    method = segmenter.pipeline.method
    look = method.look
    method.look = lambda whole: seen.append(whole.image.shape) or look(whole)
    first = segmenter(image, names)
    assert len(seen) == 1 and min(seen[0][1:]) == 336
    own = sfp.Segmenter("RF-CLIP", toyland_clip, class_vector="window")
    assert own.pipeline.method.look(Picture(torch.zeros(3, 112, 112))) is None
    assert not np.allclose(first.scores, own(image, names).scores)
    # one window: the same vector
    whole = [sfp.Segmenter("RF-CLIP", toyland_clip, class_vector=kind, window=0)
             for kind in ("image", "window")]  # fmt: skip
    scores = [segmenter(image, names).scores for segmenter in whole]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-3)


# ------------------------------------------------------------------ the trunk
@torch.inference_mode()
def test_denoising_equals_a_slow_reading(clip):
    method = build_method("RF-CLIP", clip, channels=(3, 70, 101), sigma=2.0)
    states = []
    hook = Hook(lambda state: states.append((state, method.denoise(state))), [5])
    clip.trunk.run(parity.image("win1.1", 112, 160)[None], [hook], 5)
    ((state, found),) = states
    rows, (height, width) = state.patches[0], state.grid
    expected, flagged = state.tokens[0].clone(), 0
    for y in range(height):
        for x in range(width):
            own = rows[y * width + x]
            phi = max(own[[3, 70, 101]] - own.min()) / (own - own.min()).sum()
            if phi > 2.0 / 128:
                flagged += 1
                near = [
                    rows[j * width + i]
                    for j in range(max(0, y - 1), min(height, y + 2))
                    for i in range(max(0, x - 1), min(width, x + 2))
                ]
                expected[1 + y * width + x] = 0.6 * own + 0.4 * sum(near) / 9
    assert 0 < flagged < height * width
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-5)


def test_channels_of_other_widths():
    """All of them, with one warning; none beyond the width."""
    clip, method_module = parity_clip("vit12"), sys.modules["sfp.methods._method"]
    method_module._warned.clear()
    with pytest.warns(
        UserWarning, match="12 blocks of width 128 with patch 16; taking all"
    ) as seen:
        method = build_method("RF-CLIP", clip)
        build_method("RF-CLIP", clip)
    assert len(seen) == 1 and method.channels == tuple(range(128))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method_module._warned.clear()
        assert build_method("RF-CLIP", clip, channels=[4, 100]).channels == [4, 100]
    for channels, words in (([4, 162], "channel 162, but tokens have 128"), ([], "name none")):
        with pytest.raises(SFPError, match=words):
            build_method("RF-CLIP", clip, channels=channels)


@pytest.mark.parametrize("point", ["block", "attention"])
def test_refocus_and_purification_go_together(point, clip):
    window = parity.case_image("vit12/win1")
    both, alone = (
        build_method("RF-CLIP", clip, purify=purify, repair_point=point, refocus=True,
                     refocus_threshold=0.02)(window)
        for purify in (True, False)
    )  # fmt: skip
    assert torch.isfinite(both).all() and not torch.allclose(both, alone)
