"""SAM: labels redrawn by SAM's masks, the refinement of Trident (ICCV 2025; YuHengsss/Trident)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from sfp.backbones import Backbone, load_sam
from sfp.backbones.sam import SamImage, sized
from sfp.backbones.sam_files import SAM_BASE
from sfp.errors import SFPError
from sfp.options import Range, Share
from sfp.refiners._refiner import REFINERS, LabelRefiner
from sfp.stages import Text, View

_EIGHT = np.ones((3, 3), int)  # neighbours
_MASKS_AT_ONCE = 16  # at the picture's size


@dataclass(frozen=True)
class Regions:
    """A class's regions at half size, in the order of their first pixels.

    Attributes:
        label: the class.
        masks: (R, h, w) bool.
        boxes: x0, y0, x1, y1 in half-size pixels, inclusive, (R, 4) float32.
        points: x, y of the most probable pixel, (R, 2) float32.
    """

    label: int
    masks: np.ndarray
    boxes: np.ndarray
    points: np.ndarray


@REFINERS.register("SAM")
class SamRefinement(LabelRefiner):
    """Connected regions of a class prompt SAM, whose masks take the class; for any method.

    At half size each large enough region of a class gives a point, a box and, with the class's
    other regions, a mask prompt. Of masks that SAM thinks well of, each pixel takes the class with
    the largest sigmoid(mask) times probability; pixels in no mask keep their label.

    The probabilities become those products; in regions whose masks were refused, of every class at
    least the probability itself. In the authors' code a last rule gives back old labels there; it
    never fires, so that it isn't here.

    Args:
        sam: facebook/sam-vit-base, or a folder or file of a SAM, see ``load_sam``; in float32. A
            method that has looked at the picture by the same SAM shares what it saw.
        sam_weights: a local file or folder instead of the download.
        coarse_thresh: t, least probability of a pixel that is in a region; Trident's differ by
            dataset, see configs/methods/Trident.py.
        iou_thresh: masks whose predicted IoU is not above it are refused.
        minimal_area: of a region, in pixels at half size.
        mask_factor: the mask prompt is the probability above t times this; ``sam_mask_coff`` in the
            code.
    """

    sam: str | Backbone = SAM_BASE
    sam_weights: str | None = None
    coarse_thresh: Share = 0.2
    iou_thresh: float = 0.8
    minimal_area: Annotated[int, Range(1)] = 225
    mask_factor: float = 0.005

    @functools.cached_property
    def backbones(self) -> Mapping[str, Backbone]:
        """SAM, loaded when first asked for.

        Raises:
            SFPError: see ``load_sam``; or it decodes no masks.
        """
        sam = load_sam(self.sam, "sam", self.sam_weights)
        if not hasattr(sam, "masks"):
            raise SFPError(
                f"sam of the refiner SAM is {sam.name!r}, which decodes no masks; give a SAM such"
                f" as {SAM_BASE}."
            )
        return {"sam": sam}

    def __call__(
        self, labels: Tensor, probabilities: Tensor, view: View, text: Text
    ) -> tuple[Tensor, Tensor]:
        size, half = tuple(labels.shape), tuple(max(1, side // 2) for side in labels.shape)
        coarse = F.interpolate(labels[None, None].float(), half, mode="nearest")[0, 0].long()
        q = F.interpolate(probabilities[None], half, mode="bilinear", align_corners=False)[0]
        scores, seen = torch.zeros_like(probabilities), None
        refused, any_accepted = torch.zeros(half, dtype=torch.bool), False
        for found in regions(coarse, q, self.coarse_thresh, self.minimal_area):
            if seen is None:
                sam = self.backbones["sam"].to(labels.device)
                seen = self._see(sam, view)
            prompt = mask_prompt(
                q[found.label], size, sam.prompt_side, self.coarse_thresh, self.mask_factor
            )
            factor = torch.tensor([seen.size[1] / half[1], seen.size[0] / half[0]])
            points = torch.from_numpy(found.points) * factor
            boxes = torch.from_numpy(found.boxes) * factor.repeat(2)
            logits, quality = sam.masks(seen, points.to(q.device), boxes.to(q.device), prompt)
            accepted = quality > self.iou_thresh
            if bool(accepted.any()):
                masks = logits[accepted].split(_MASKS_AT_ONCE)
                best = torch.stack([seen.enlarged(some, size).amax(0) for some in masks]).amax(0)
                own = best.sigmoid() * probabilities[found.label]
                scores[found.label] = own.masked_fill(best <= 0, 0.0)
                any_accepted = True
            refused |= torch.from_numpy(found.masks[(~accepted).cpu().numpy()].any(0))
        if not any_accepted:
            return labels, probabilities
        best, label = scores.max(0)
        labels = torch.where(best > 0, label, labels)
        union = refused.to(q.device)[None, None].float()
        union = F.interpolate(union, size, mode="nearest")[0, 0] > 0
        return labels, torch.maximum(scores, probabilities * union)

    def _see(self, sam: Backbone, view: View) -> SamImage:
        """The picture as SAM sees it; as the method has seen it by the same weights, if it has."""
        known = getattr(view.looked, "sam", None)
        if isinstance(known, SamImage) and known.sam.fingerprint == sam.fingerprint:
            return known
        return sam.see(view.picture.original())


def regions(
    labels: Tensor, probabilities: Tensor, threshold: float, minimal_area: int
) -> Iterator[Regions]:
    """8-connected regions of each class, classes ascending; those that have none are left out.

    Args:
        labels: (h, w).
        probabilities: (K, h, w).
        threshold: pixels whose best class is less probable are in no region.
        minimal_area: of a region in pixels.
    """
    sure = probabilities.amax((1, 2)) >= threshold
    labels = labels.masked_fill(probabilities.amax(0) < threshold, -1).cpu().numpy()
    for label in np.unique(labels[labels >= 0]).tolist():
        if not sure[label]:
            continue
        numbered, _ = ndimage.label(labels == label, _EIGHT)
        areas = np.bincount(numbered.flat)[1:]
        kept = [number for number, area in enumerate(areas, 1) if area >= minimal_area]
        if not kept:
            continue
        own = probabilities[label].cpu().numpy()
        masks = np.stack([numbered == number for number in kept])
        rows, columns = masks.any(2), masks.any(1)
        ends = [
            end
            for side in (columns, rows)
            for end in (side.argmax(1), side.shape[1] - 1 - side[:, ::-1].argmax(1))
        ]
        left, right, top, bottom = ends
        best = np.where(masks, own, -np.inf).reshape(len(masks), -1).argmax(1)
        down, across = np.unravel_index(best, own.shape)
        yield Regions(
            label,
            masks,
            np.stack([left, top, right, bottom], 1).astype(np.float32),
            np.stack([across, down], 1).astype(np.float32),
        )


def mask_prompt(
    probability: Tensor, size: tuple[int, int], side: int, threshold: float, factor: float
) -> Tensor:
    """A class's probability (h, w) as a mask prompt (side, side) for a picture of a size (H, W)."""
    height, width = sized(*size, side)
    maps = F.interpolate(
        probability[None, None], (height, width), mode="bilinear", align_corners=False
    )[0, 0]
    maps = torch.where(maps > threshold, maps * factor, 0.0)
    return F.pad(maps, (0, side - width, 0, side - height))
