"""SAM's refinement of labels against the authors' code, with a made-up decoder."""

from __future__ import annotations

import numpy as np
import pytest
import second_backbone as second
import torch
import torch.nn.functional as F
from torch import Tensor

from sfp.backbones import Backbone
from sfp.backbones.sam import SamImage, sized
from sfp.refiners import build_refiner
from sfp.stages import Picture, View

SETTINGS = second.settings("trident_refine")


class Decoder(Backbone):
    """A SAM whose masks are made up, told apart by the number of the call; keeps its prompts."""

    side, patch, prompt_side = 1024, 16, 256

    def __init__(self, name: str):
        super().__init__(name=name)
        self.prompts: list[tuple[Tensor, Tensor, Tensor]] = []

    def see(self, pixels: np.ndarray) -> SamImage:
        return SamImage(self, torch.empty(0), sized(*pixels.shape[:2], self.side))

    def masks(self, seen, points, boxes, prompt) -> tuple[Tensor, Tensor]:
        call, logits, quality = len(self.prompts), [], []
        self.prompts.append((points, boxes, prompt))
        places = torch.arange(256.0)
        for region, (x0, y0, x1, y1) in enumerate((boxes / 4).tolist()):
            inside = ((places >= y0) & (places <= y1))[:, None] & (places >= x0) & (places <= x1)
            made = second.features(f"{self.name}.{call}.{region}", 1, 256, 256)[0]
            logits.append(made + torch.where(inside, 4.0, -4.0))
            quality.append(0.5 if (call + region) % 3 == 2 else 0.95)
        return torch.stack(logits), torch.tensor(quality)


def problem(own: dict) -> tuple[Tensor, Tensor, View]:
    """Labels, probabilities and the picture of a case."""
    maps = second.features(own["prob"], own["classes"], 12, 15).double()
    maps = F.interpolate(maps[None], tuple(own["size"]), mode="bilinear", align_corners=False)
    probabilities = (1.5 * maps[0]).softmax(0).float()
    pixels = np.zeros((*own["size"], 3), np.uint8)
    view = View(Picture(torch.zeros(3, *own["size"]), pixels), torch.zeros(1, 4), {})
    return probabilities.argmax(0), probabilities, view


def refiner_of(own: dict, decoder: Backbone):
    return build_refiner(
        dict(
            type="SAM",
            sam=decoder,
            coarse_thresh=own["coarse_thresh"],
            iou_thresh=own["sam_iou_thresh"],
            minimal_area=own["minimal_area"],
            mask_factor=own["sam_mask_coff"],
        )
    )


@pytest.mark.parametrize("case", SETTINGS)
@torch.inference_mode()
def test_equals_the_official_code(case):
    own, arrays = SETTINGS[case], second.golden("trident_refine", case)
    decoder = Decoder(own["decoder"])
    before, probabilities, view = problem(own)
    labels, scores = refiner_of(own, decoder)(before, probabilities, view, second.text())
    points, boxes = (torch.cat([prompt[i] for prompt in decoder.prompts]) for i in (0, 1))
    assert [len(prompt[0]) for prompt in decoder.prompts] == [r for r in own["regions"]] or len(
        decoder.prompts
    ) == own["calls"]
    second.close(points, arrays["points"], 1e-3, "points")
    second.close(boxes, arrays["boxes"], 1e-3, "boxes")
    prompts = torch.stack([prompt[2] for prompt in decoder.prompts])
    second.close(prompts[:, ::4, ::4], arrays["mask_prompt"], 1e-7, "mask_prompt")
    second.close(scores[:, ::2, ::2], arrays["scores"], 1e-5, "scores")
    assert np.array_equal(labels, arrays["labels"])
    assert int((labels != before).sum()) == own["changed_pixels"]
