"""SAM's refinement of labels against the authors' code, with a made-up decoder."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import second_backbone as second
import torch
import torch.nn.functional as F
from torch import Tensor

from sfp import Segmenter
from sfp.backbones import Backbone
from sfp.backbones.sam import SamImage, sized
from sfp.errors import SFPError
from sfp.refiners import build_refiner
from sfp.refiners.sam_refinement import regions
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
    assert len(decoder.prompts) == own["calls"]
    assert sorted(len(prompt[0]) for prompt in decoder.prompts) == own["regions"]
    second.close(points, arrays["points"], 1e-3, "points")
    second.close(boxes, arrays["boxes"], 1e-3, "boxes")
    prompts = torch.stack([prompt[2] for prompt in decoder.prompts])
    second.close(prompts[:, ::4, ::4], arrays["mask_prompt"], 1e-7, "mask_prompt")
    second.close(scores[:, ::2, ::2], arrays["scores"], 1e-5, "scores")
    assert np.array_equal(labels, arrays["labels"])
    assert int((labels != before).sum()) == own["changed_pixels"]


# ---------------------------------------------------------------------- rule by rule
def plain_regions(labels: np.ndarray, minimal_area: int) -> dict[int, list[set]]:
    """Regions of each class by flooding, in the order of their first pixels."""
    height, width = labels.shape
    seen, found = np.zeros_like(labels, bool), {}
    for y, x in np.ndindex(height, width):
        if seen[y, x] or labels[y, x] < 0:
            continue
        waiting, region = [(y, x)], set()
        seen[y, x] = True
        while waiting:
            i, j = waiting.pop()
            region.add((i, j))
            for down, across in np.ndindex(3, 3):
                at = i + down - 1, j + across - 1
                inside = 0 <= at[0] < height and 0 <= at[1] < width
                if inside and not seen[at] and labels[at] == labels[i, j]:
                    seen[at] = True
                    waiting.append(at)
        if len(region) >= minimal_area:
            found.setdefault(int(labels[y, x]), []).append(region)
    return found


@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_regions_are_a_plain_readings(threshold):
    maps = F.interpolate(torch.randn(1, 5, 9, 11), (31, 40), mode="bilinear")[0].softmax(0)
    labels = maps.argmax(0)
    sure = torch.where(maps.amax(0) >= threshold, labels, -1).numpy()
    expected = plain_regions(sure, 6)
    found = list(regions(labels, maps, threshold, 6))
    assert [own.label for own in found] == sorted(expected) and len(found) > 2
    for own in found:
        assert len(own.masks) == len(expected[own.label])
        several = zip(own.masks, own.boxes, own.points, expected[own.label], strict=True)
        for mask, box, point, region in several:
            assert set(zip(*np.nonzero(mask), strict=True)) == region
            rows, columns = zip(*region, strict=True)
            assert box.tolist() == [min(columns), min(rows), max(columns), max(rows)]
            best = max(sorted(region), key=lambda at: float(maps[own.label][at]))
            assert point.tolist() == [best[1], best[0]]


def test_corners_connect():
    labels = torch.eye(4, dtype=torch.long)
    found = {own.label: own.masks for own in regions(labels, torch.ones(2, 4, 4), 0.0, 1)}
    assert len(found[1]) == 1 and len(found[0]) == 1  # both triangles, over the diagonal


class Fixed(Decoder):
    """Masks and predicted IoU by call."""

    def __init__(self, logits: list[float], quality: list[float]):
        super().__init__("fixed")
        self.given = logits, quality

    def masks(self, seen, points, boxes, prompt):
        call = len(self.prompts)
        self.prompts.append((points, boxes, prompt))
        logits, quality = (own[call] for own in self.given)
        return torch.full((len(points), 256, 256), logits), torch.full((len(points),), quality)


def halves(height: int = 20, width: int = 24) -> tuple[Tensor, Tensor, View]:
    """Class 0 on the left, 1 on the right, 2 nowhere."""
    probabilities = torch.zeros(3, height, width)
    probabilities[0, :, : width // 2], probabilities[0, :, width // 2 :] = 0.7, 0.2
    probabilities[1] = 0.9 - probabilities[0]
    probabilities[2] = 0.1
    pixels = np.zeros((height, width, 3), np.uint8)
    view = View(Picture(torch.zeros(3, height, width), pixels), torch.zeros(1, 4), {})
    return probabilities.argmax(0), probabilities, view


def refined(decoder: Backbone, problem: tuple[Tensor, Tensor, View] | None = None, **options):
    options = dict(coarse_thresh=0.0, minimal_area=4, **options)
    before, probabilities, view = problem or halves()
    refiner = build_refiner(dict(type="SAM", sam=decoder, **options))
    return refiner(before, probabilities, view, second.text())


def test_a_mask_over_all_takes_the_class_with_the_largest_product():
    before, probabilities, _ = halves()
    labels, scores = refined(Fixed([3.0, 0.5], [0.9, 0.9]))
    expected = torch.stack(
        [
            probabilities[0] * torch.tensor(3.0).sigmoid(),
            probabilities[1] * torch.tensor(0.5).sigmoid(),
            torch.zeros_like(probabilities[0]),
        ]
    )
    torch.testing.assert_close(scores, expected)
    assert torch.equal(labels, expected.argmax(0)) and torch.equal(labels, before)


@pytest.mark.parametrize("height", [20, 21])
def test_pixels_in_no_mask_keep_their_label(height):
    """A mask of negative logits is none, though it was accepted."""
    before, probabilities, _ = own = halves(height, 24 + height % 2)
    labels, scores = refined(Fixed([-1.0, -1.0], [0.9, 0.9]), own)
    assert torch.equal(labels, before) and not scores.any()
    labels, scores = refined(Fixed([1.0, -1.0], [0.9, 0.9]), own)
    assert not labels.any() and not scores[1:].any() and scores[0].all()  # class 0 everywhere
    assert probabilities.argmax(0).any()


def test_refused_regions_give_their_probabilities_and_no_labels():
    """IoU must be above the threshold; nothing accepted leaves all as it was."""
    before, probabilities, _ = own = halves()
    labels, scores = refined(Fixed([1.0, 1.0], [0.8, 0.8]), own)
    assert labels is before and scores is probabilities
    labels, scores = refined(Fixed([1.0, 1.0], [0.81, 0.8]), own)
    assert not labels.any()  # by class 0's mask, though the scores now say otherwise
    right = slice(12, None)
    torch.testing.assert_close(scores[:, :, right], probabilities[:, :, right])
    torch.testing.assert_close(scores[0, :, :12], probabilities[0, :, :12] * 0.7310586)
    assert not scores[1:, :, :12].any()


def test_without_a_region_sam_sees_nothing():
    class Blind(Fixed):
        def see(self, pixels):
            raise AssertionError

    before, probabilities, view = halves()
    refiner = build_refiner(dict(type="SAM", sam=Blind([], []), minimal_area=1000))
    labels, scores = refiner(before, probabilities, view, second.text())
    assert labels is before and scores is probabilities


def test_pixels_below_the_threshold_are_in_no_region():
    decoder = Fixed([1.0], [0.9])
    before, probabilities, view = halves()
    probabilities[0] *= 0.5
    build_refiner(dict(type="SAM", sam=decoder, coarse_thresh=0.5, minimal_area=4))(
        before, probabilities, view, second.text()
    )
    ((points, boxes, prompt),) = decoder.prompts  # class 1 alone
    size = torch.tensor([1024 / 12, sized(20, 24, 1024)[0] / 10])
    torch.testing.assert_close(boxes, torch.tensor([[6.0, 0, 11, 9]]) * size.repeat(2))
    torch.testing.assert_close(points, torch.tensor([[6.0, 0]]) * size, atol=100, rtol=0)
    torch.testing.assert_close(prompt[10, 200], torch.tensor(0.7 * 0.005))
    assert not prompt[:, :100].any() and not prompt[sized(20, 24, 256)[0] :].any()


def test_mistakes(tmp_path):
    for sam, words in (("colour", "decodes no masks"), (str(tmp_path), "no model.safetensors in")):
        refiner = build_refiner(dict(type="SAM", sam=sam))
        with pytest.raises(SFPError, match=words):
            refiner.backbones  # noqa: B018
    with pytest.raises(SFPError, match="decodes no masks"):
        Segmenter("CLIP", "Toyland", device="cpu", refine=["SAM:sam=colour"])
    with pytest.raises(SFPError, match="iou_thres"):
        build_refiner("SAM:iou_thres=0.9")
    before, probabilities, view = halves()
    bare = replace(view, picture=replace(view.picture, pixels=None))
    with pytest.raises(SFPError, match="original pixels"):
        refined(Fixed([1.0, 1.0], [0.9, 0.9]), (before, probabilities, bare))
