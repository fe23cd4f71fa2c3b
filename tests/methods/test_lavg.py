"""LaVG against the authors' code, alone and beside another image, and against a plain reading."""

from __future__ import annotations

import numpy as np
import pytest
import second_backbone as sb
import torch
import torch.nn.functional as F

from sfp.methods import build_method
from sfp.pipeline import Pipeline, Protocol, Task
from sfp.stages import Picture, Text

CASES = {name: own for name, own in sb.settings("lavg").items() if "masks" in own}


def masks_of(case: str) -> np.ndarray:
    """(5, H0, W0), the last is what the others leave."""
    own = CASES[case]
    masks = (sb.features(own["masks"], 4, *(own["ori_shape"] or own["size"])) > 0.7).numpy()
    masks[2] = False
    masks = np.concatenate([masks, ~masks.any(0)[None]])
    assert masks.sum((1, 2)).tolist() == own["mask_area"]
    return masks


def picture_of(case: str) -> Picture:
    own = CASES[case]
    size = own["ori_shape"] or own["size"]
    return Picture(sb.picture(own["image"], *own["size"]), np.zeros((*size, 3), np.uint8), case)


def made_of(case: str) -> tuple[Pipeline, Text]:
    own = CASES[case]
    method = build_method(
        "LaVG",
        sb.clip_of(case),
        masks=lambda picture: masks_of(picture.path),
        drop_background=own["remove_background_region"],
    )
    keys = ("window", "stride", "logit_scale", "prob_thd", "area_thd")
    protocol = Protocol(**{key: own[key] for key in keys})
    text = Text(sb.text().vectors, class_of_query=tuple(own["queries_to_classes"]))
    return Pipeline(method, None, protocol, windows_at_once=8), text


@pytest.mark.parametrize("case", sorted(CASES))
@pytest.mark.parametrize("company", ["alone", "beside another"])
def test_equals_official_code(case, company):
    arrays, (pipeline, text) = sb.golden("lavg", case), made_of(case)
    other = next(name for name in CASES if name.split("_")[0] != case.split("_")[0])
    cases = [case] if company == "alone" else [case, other]
    pictures = [picture_of(own) for own in cases]
    sizes = [own.pixels.shape[:2] for own in pictures]
    logits = pipeline.score(pipeline.views(pictures)[0], text, sizes[0]).canvas()
    sb.close(logits[:, ::4, ::4], arrays["logits"], 1e-5, "logits")
    if "labels" not in arrays:
        return
    found = pipeline.segment(pictures, [Task(text, pipeline.protocol)], sizes, True)
    labels, probabilities = found[0][0]
    sb.close(probabilities[:, ::4, ::4], arrays["prob"], 1e-3, "prob")
    sure = np.unpackbits(arrays["sure"])[: labels.numel()].reshape(labels.shape) == 1
    assert sure.mean() > 0.999
    np.testing.assert_array_equal(labels.numpy()[sure], arrays["labels"][sure])


@torch.inference_mode()
def test_a_plain_reading_pixel_by_pixel(clip):
    """Every mask's mean of enlarged features, written from the last mask to the first; two windows
    of a picture whose masks are larger than it, some empty in a window.
    """
    image, size = sb.picture("plain", 112, 160), (150, 200)
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(4, 1, 5, 7, generator=generator)
    masks = (F.interpolate(coarse, size=size, mode="bilinear")[:, 0] > 0.5).numpy()
    masks[1, :, 100:] = False
    for drop in (False, True):
        method = build_method("LaVG", clip, masks=lambda _: masks, drop_background=drop)
        pipeline = Pipeline(method, None, Protocol(window=112, stride=48))
        text = Text(sb.text().vectors, class_of_query=(0, 0, 1, 2, 3, 4, 5))
        (view,) = pipeline.views([Picture(image, np.zeros((*size, 3), np.uint8))])
        found = method.score(view, text)
        everything = np.concatenate([masks, ~masks.any(0)[None]])
        stack = F.interpolate(torch.from_numpy(everything)[None].float(), size=(112, 160))[0] > 0
        total, visits = torch.zeros(112, 160, 7), torch.zeros(112, 160, 1)
        for maps, (top, left, bottom, right) in zip(
            view["features"], view.boxes.tolist(), strict=True
        ):
            pixels = F.interpolate(maps.permute(2, 0, 1)[None], size=(112, 112), mode="bilinear")
            pixels = pixels[0].permute(1, 2, 0)
            scores, own = pixels @ text.vectors.T, stack[:, top:bottom, left:right]
            for mask in reversed(own):
                if mask.any():
                    scores[mask] = pixels[mask].mean(0) @ text.vectors.T
            if drop:
                scores[..., 2:][own[-1]] = scores.min()
            total[top:bottom, left:right] += scores
            visits[top:bottom, left:right] += 1
        assert len(view.boxes) == 2
        torch.testing.assert_close(found, total / visits, atol=1e-6, rtol=1e-5)


def test_the_order_of_masks_counts(clip):
    """On overlaps the first mask wins."""
    image = sb.picture("plain", 112, 112)
    masks = np.zeros((2, 112, 112), bool)
    masks[0, :70], masks[1, 40:] = True, True
    text = sb.text().vectors
    first, second = (
        build_method("LaVG", clip, masks=lambda _, own=own: own).scores(image[None], text)[0]
        for own in (masks, masks[::-1])
    )
    assert torch.equal(first[50, 3], first[10, 90]) and torch.equal(second[50, 3], second[100, 0])
    assert not torch.allclose(first[50], second[50], atol=1e-4)
