"""PEARL against the authors' code, alone and in a batch, as a method and as a segmentor."""

from __future__ import annotations

import clip_only
import parity
import pytest
import torch

from sfp.clip.text_bank import TextBank
from sfp.methods import build_method
from sfp.methods.pearl import polar_factor
from sfp.pipeline import Pipeline, Protocol, Task
from sfp.stages import Text

CASES = clip_only.settings("pearl")
PROTOCOLS = clip_only.settings("segmentor_pearl")


def build(case: str):
    own = CASES[case]
    return build_method(
        "PEARL",
        clip_only.clip_of(case),
        alpha_kk=own["alpha_kk"] if own["use_kk"] else 0.0,
        solver=own["align_solver"],
        polar_iterations=own["polar_iters"],
        full_block=own["arch"] == "vanilla",
    )


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_equals_official_code_alone_and_in_a_batch(case):
    method, cases = build(case), clip_only.two("pearl", case)
    windows, grid = clip_only.windows_of("pearl", cases), None
    grid, rows = method.grid(windows), method.patch_rows(windows)
    for batch, members in ((windows[:1], cases[:1]), (windows, dict.fromkeys(cases))):
        found = clip_only.read_out(method, method.tokens(batch), grid)
        block = method.last_block
        q, k, _ = block.qkv(block.normed(method.stream(batch)))
        found["rot"] = method.align(q, k, rows)[1]
        for row, member in enumerate(members):
            own = {name: value[row] for name, value in found.items()}
            clip_only.assert_golden("pearl", member, own)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_equals_the_official_segmentor(protocol, clip):
    own, arrays = PROTOCOLS[protocol], parity.golden("segmentor_pearl")
    settings = {key: own[key] for key in ("stride", "logit_scale", "prob_thd")}
    refine = [dict(type="TLP", grid=own["grid"])] if own["tlp"] else []
    walk = Pipeline(
        build_method("PEARL", clip_only.clip_of("vit12/full")),
        TextBank(clip, cache_dir=False),
        Protocol(window=own["crop"], refine=refine, **settings),
    )
    with parity.seeded(clip_only.INDEX["seed"]):
        image = parity.image(own["image"], *own["size"])
    text = Text(clip_only.text().vectors, class_of_query=tuple(own["idx"]))
    size, every = tuple(own["ori_shape"]), own["keep_every"]
    (view,) = walk.views([image])
    scores = walk.score(view, text).resized(size).canvas()
    for refiner in walk.protocol.refiners:
        scores = refiner(scores, view, text)
    task = Task(text, walk.protocol)
    for images in ([image], [image.flip(-1), image]):
        labels, probabilities = walk.segment(images, [task], [size] * len(images), True)[0][-1]
        found = {
            "logits": scores[:, ::every, ::every],
            "prob": (probabilities / probabilities.sum(0))[:, ::every, ::every],
            "labels": torch.from_numpy(arrays[f"{protocol}/labels"]),  # compared below
            "sure": torch.from_numpy(arrays[f"{protocol}/sure"]),
        }
        clip_only.assert_golden("segmentor_pearl", protocol, found)
        clip_only.assert_labels("segmentor_pearl", protocol, labels)


def test_every_golden_has_its_case():
    assert not CASES or set(parity.cases("pearl")) in (set(), set(CASES))
    assert set(parity.cases("segmentor_pearl")) in (set(), set(PROTOCOLS))


def test_the_steps_go_to_the_polar_factor():
    matrix = torch.randn(3, 8, 8, dtype=torch.float64).float()
    u, _, v = torch.linalg.svd(matrix)
    torch.testing.assert_close(polar_factor(matrix, 60), u @ v, atol=5e-3, rtol=0)
    few = torch.linalg.svdvals(polar_factor(matrix, 5))
    assert few.min() < 0.9 and few.max() < 1.1  # a soft low-pass


def test_a_rotation_is_recovered(clip):
    """Where Q' = K' R the exact solver finds R."""
    method = build_method("PEARL", clip, solver="svd")
    rotation, _ = torch.linalg.qr(torch.randn(16, 16))
    k = torch.randn(2, 3, 50, 16)
    _, found = method.align(k @ rotation, k, slice(1, 50))
    torch.testing.assert_close(found, rotation.expand(2, 3, 16, 16), atol=1e-4, rtol=0)
