"""FreeCP: the authors' code step by step, its boxes, its decision rule, bases and mistakes."""

from __future__ import annotations

import json
import warnings

import numpy as np
import parity
import pytest
import torch
from conftest import parity_clip

import sfp
from sfp.clip.text_bank import TextBank
from sfp.clip.trunk import Attention, Hook
from sfp.datasets import toyland
from sfp.errors import SFPError
from sfp.methods import METHODS, build_method, list_methods
from sfp.methods._boxes import boxes_of, mask_of
from sfp.methods.freecp import affinity as affinity_of
from sfp.methods.freecp import agreement, refine, rivals, soft_iou, stretch
from sfp.pipeline import Pipeline, Protocol, Task, Vocabulary
from sfp.stages import Text, View

MAP = Attention.MAP
INDEX = parity.read_index("index_clip_only")
FILE = INDEX["files"].get("freecp", dict(settings={}, images={}))
CASES = list(FILE["settings"])


def spec_of(case: str) -> str:
    return case.split("/")[0]


def picture(case: str) -> torch.Tensor:
    name = case.split("/")[1].split("_")[0]
    with parity.seeded(INDEX["seed"]):
        return parity.image(FILE["images"][f"{spec_of(case)}/{name}"], *INDEX["sizes"][name])


class MadeUpText:
    """A text bank whose sentences are the golden's vectors."""

    def __init__(self, vectors: torch.Tensor):
        self.vectors = vectors

    def describe(self, sentences) -> torch.Tensor:
        assert len(sentences) == len(self.vectors)
        return self.vectors


def text_of(case: str) -> Text:
    """Background words first, then a query for each class."""
    arrays = parity.golden("freecp")
    vectors, second = (
        torch.from_numpy(arrays[f"{spec_of(case)}/{name}"]) for name in ("text", "text_llm")
    )
    background = FILE["settings"][case]["bkg"]
    words = ["background", *map(str, range(1, len(vectors)))]
    classes = [max(0, i - background + 1) for i in range(len(vectors))]
    return Text(vectors, tuple(words), tuple(classes), MadeUpText(second))


@pytest.fixture
def build(tmp_path):
    def make(case: str):
        file = tmp_path / "sentences.json"
        file.write_text(json.dumps({str(i): [f"it is {i}"] for i in range(7)}))
        settings = FILE["settings"][case]
        clip = parity_clip(spec_of(case), INDEX["seed"])
        assert clip.logit_scale == pytest.approx(settings["logit_scale"], rel=1e-6)
        thresholds = {key: settings[key] for key in ("rp_thres", "ap_thres")}
        return build_method(
            "FreeCP", clip, base=settings["base"], sentences=str(file), **thresholds
        )

    return make


def views(method, images: list[torch.Tensor]) -> list[View]:
    encoded = method.run(torch.stack(images))
    box = torch.tensor([[0, 0, *images[0].shape[1:]]])
    return [
        View(image, box, {name: rows[i : i + 1] for name, rows in encoded.items()})
        for i, image in enumerate(images)
    ]


def close(found, expected, atol: float) -> None:
    np.testing.assert_allclose(found, expected, atol=atol, rtol=0)


@pytest.mark.parametrize("together", [False, True], ids=["alone", "batch"])
@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_equals_official_code(case, together, build):
    arrays, method, text = parity.golden("freecp"), build(case), text_of(case)
    image, background = picture(case), FILE["settings"][case]["bkg"]
    with parity.seeded(INDEX["seed"]):
        other = [parity.image("beside", *image.shape[1:])] if together else []
    view = views(method, [*other, image])[-1]

    def golden(name):
        return arrays[f"{case}/{name}"]

    grid, affinity = method.trunk.grid_of(*view.size), view["affinity"]
    cosines = method.wrapped.score(view, text).permute(0, 3, 1, 2)
    close(cosines[0], golden("logits"), 1e-5)
    maps = []
    hook = Hook(lambda state: maps.append(state.attention), range(1, method.trunk.layers), MAP)
    method.wrapped.stream(image[None], hook)
    mean, rows = torch.stack(maps).mean(0)[:, 1:, 1:], golden("attn")
    place = (mean[0, :, None] - torch.from_numpy(rows)).abs().amax(-1).argmin(0)
    assert len(set(place.tolist())) == len(rows)
    close(mean[0, place], rows, 1e-5)
    close(affinity, affinity_of(mean), 1e-5)

    probabilities = (method.clip.logit_scale * cosines.flatten(2)).softmax(1)
    stretched, foreground = stretch(probabilities), method.foreground(text)
    assert foreground.tolist() == [i >= background for i in range(len(text))]
    close(stretched[0].unflatten(1, grid), golden("normalized"), 1e-4)
    refined = refine(stretched, affinity, foreground, grid)
    close(refined[0].unflatten(1, grid), golden("refined"), 1e-4)
    scores = agreement(probabilities, refined)[0, background:]
    close(scores, golden("rp"), 1e-5)
    kept = (scores > method.rp_thres).nonzero()[:, 0] + background
    np.testing.assert_array_equal(kept - background, golden("kept_rp"))
    overlap = soft_iou(refined[0, kept])
    close(overlap, golden("soft_iou"), 1e-5)

    heats = stretched[0].unflatten(1, grid).numpy()
    boxes = []
    for call, heat in enumerate(heats[background:]):  # where there is none the golden has zeros
        boxes += [[call, *box] for box in boxes_of(heat) or [(0, 0, 0, 0)]]
    groups = rivals(refined[0], torch.isin(torch.arange(len(text)), kept), method.ap_thres)
    for call, group in enumerate(groups, len(scores)):
        heat = refined[0, group].mean(0).unflatten(0, grid).numpy()
        boxes += [[call, *box] for box in boxes_of(heat)]
    assert sorted(boxes) == sorted(golden("boxes").tolist())
    crops = [method._crop(view, 0, box) for call, *box in boxes if call >= len(scores)]
    if crops:
        seen = method._class_vectors(torch.stack(crops))
        of_call = [groups[call - len(scores)] for call, *_ in boxes if call >= len(scores)]
        found = [
            own @ method.second_set(text)[group].T for own, group in zip(seen, of_call, strict=True)
        ]
        close(np.sort(torch.cat(found)), np.sort(golden("crop_cls")), 1e-5)

    maps = method.score(view, text)[0].permute(2, 0, 1)
    stays = maps.flatten(1).amax(1).nonzero()[:, 0] - background
    np.testing.assert_array_equal(stays, golden("kept_ap"))
    pixels = torch.nn.functional.interpolate(maps[None], size=view.size, mode="bilinear")[0]
    close(pixels[:, ::8, ::8], golden("out"), 1e-4)
