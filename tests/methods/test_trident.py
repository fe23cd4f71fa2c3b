"""Trident against the authors' code with made-up DINO and SAM, alone and beside another image."""

from __future__ import annotations

import numpy as np
import pytest
import second_backbone as second
import torch

from sfp.backbones.sam import SamAttention
from sfp.methods import build_method
from sfp.pipeline import Pipeline, Protocol
from sfp.pipeline.windows import cut, window_grid
from sfp.stages import Picture, View

SETTINGS = second.settings("trident")


def sam_part(own: dict, part: int) -> SamAttention:
    """The made-up SAM of a part of a case's picture."""
    grid, heads = tuple(own["sam_grid"]), range(own["sam_heads"])
    values, maps = [], []
    for head in heads:
        v = second.features(f"{own['sam_v']}.{part}.{head}", own["sam_channels"], *grid)
        f = second.features(f"{own['sam_attn']}.{part}.{head}", own["sam_channels"], *grid)
        f = f.flatten(1).double()
        values.append(v.flatten(1).T)
        maps.append((3 * f.T @ f / np.sqrt(own["sam_channels"])).softmax(-1).float())
    return SamAttention(grid, torch.stack(values), maps)


class Made:
    """Made-up second models and pictures of several cases of one network.

    Pictures have one colour each, halves two: by it the made-up SAM knows what it is asked for.
    """

    def __init__(self, cases: list[str]):
        self.cases, self.pictures, windows, maps = cases, [], [], []
        self.parts: list[SamAttention] = []
        for case in cases:
            own = SETTINGS[case]
            image = second.picture(own["image"], *own["size"])
            pixels = np.zeros((*own["ori_shape"], 3), np.uint8)
            for part in range(own["sam_images"]):
                width = pixels.shape[1] // own["sam_images"]
                pixels[:, part * width :] = len(self.parts)
                self.parts.append(sam_part(own, part))
            self.pictures.append(Picture(image, pixels))
            grid = window_grid(*own["size"], own["crop"], own["stride"])
            assert len(grid) == own["windows"][0] * own["windows"][1]
            for number, window in enumerate(grid):
                windows.append(cut(image, window))
                name = f"{own['dino']}.{number}"
                maps.append(second.features(name, own["dino_channels"], *own["dino_grid"]))
        first = SETTINGS[cases[0]]
        self.dino = second.MadeUp(torch.stack(windows), torch.stack(maps))
        self.options = dict(
            proxy=self.dino,
            sam=self.see,
            proxy_beta=first["beta"],
            proxy_gamma=first["gamma"],
            kappa=first["cos_fac"],
            refine_neg_cos=first["refine_neg_cos"],
            sam_halves=first["sam_images"] == 2,
        )

    def see(self, pixels: np.ndarray) -> SamAttention:
        return self.parts[int(pixels[pixels.shape[0] // 2, pixels.shape[1] // 2, 0])]

    def pipeline(self, **options) -> Pipeline:
        own = SETTINGS[self.cases[0]]
        method = build_method("Trident", second.clip_of(self.cases[0]), **self.options, **options)
        return Pipeline(method, None, Protocol(window=own["crop"], stride=own["stride"]))


def check(case: str, pipeline: Pipeline, view: View) -> None:
    own, arrays, text = SETTINGS[case], second.golden("trident", case), second.text()
    method = pipeline.method
    with torch.inference_mode():
        features = method.trunk.readout(method.mixed(view)).flatten(0, 1)
    second.close(features[arrays["tok"]], arrays["feat"], 5e-5, "feat")
    scores = method.score(view, text)
    second.close(scores.permute(2, 0, 1), arrays["logits"], 1e-5, "logits")
    every = own["keep_every"]
    whole = pipeline.score(view, text, tuple(own["ori_shape"])).canvas()
    second.close(whole[:, ::every, ::every], arrays["image_logits"], 1e-5, "image_logits")


@pytest.mark.parametrize("case", SETTINGS)
def test_equals_the_official_code(case):
    made = Made([case])
    pipeline = made.pipeline()
    (view,) = pipeline.views(made.pictures)
    check(case, pipeline, view)


def alike() -> list[list[str]]:
    """Cases that one method can take: of one network and with equal constants."""
    keys = ("beta", "gamma", "cos_fac", "refine_neg_cos", "sam_images", "crop", "stride",
            "dino_grid", "dino_channels")  # fmt: skip
    groups: dict[str, list[str]] = {}
    for case, own in SETTINGS.items():
        groups.setdefault(f"{case.split('/')[0]} {[own[key] for key in keys]}", []).append(case)
    return [cases for cases in groups.values() if len(cases) > 1]


@pytest.mark.parametrize("cases", alike(), ids=" ".join)
@pytest.mark.parametrize("at_once", [None, 2])
def test_beside_another_image_in_one_batch(cases, at_once):
    """Of several windows each; a batch of two windows has one of either image."""
    made = Made(cases)
    pipeline = made.pipeline()
    pipeline.windows_at_once = at_once
    for case, view in zip(cases, pipeline.views(made.pictures), strict=True):
        check(case, pipeline, view)
