"""The region masks of one image."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import Tensor

from sfp.errors import SFPError


@dataclass(frozen=True)
class Regions:
    """Region masks of one image in their order; they may overlap, and need not cover it.

    Kept as COCO's run lengths: hundreds of masks of a large picture take some kilobytes.

    Attributes:
        size: (H, W).
        runs: of each mask.
        has_rest: whether the last mask is all that the others leave, as LaVG's files have it.
    """

    size: tuple[int, int]
    runs: tuple[bytes, ...] = ()
    has_rest: bool = False

    @classmethod
    def of_stack(cls, masks: np.ndarray) -> Regions:
        """Of masks (M, H, W), where they aren't 0; the last one is the rest if it is just what the
        others leave.

        Raises:
            SFPError: another shape.
        """
        masks = np.asarray(masks)
        if masks.ndim != 3 or 0 in masks.shape[1:] or masks.dtype.kind not in "bui":
            raise SFPError(
                f"Masks are an array {masks.shape} {masks.dtype}; give (M, H, W) of bool or of"
                " whole numbers, or one map (H, W) of whole numbers."
            )
        left = np.ones(masks.shape[1:], bool)
        for mask in masks[:-1]:
            left &= mask == 0
        rest = len(masks) > 1 and left.any() and np.array_equal(left, masks[-1] != 0)
        return cls(masks.shape[1:], tuple(_encode(mask != 0) for mask in masks), bool(rest))

    @classmethod
    def of_map(cls, numbers: np.ndarray) -> Regions:
        """Of a map (H, W) of whole numbers: a mask for each that isn't 0, in their order."""
        values = np.unique(numbers)
        masks = tuple(_encode(numbers == value) for value in values[values != 0])
        return cls(numbers.shape, masks)

    @classmethod
    def of_runs(cls, size: tuple[int, int], runs: Iterable[dict]) -> Regions:
        """Of COCO's run lengths, compressed."""
        return cls(tuple(size), tuple(one["counts"] for one in runs))

    def __len__(self) -> int:
        return len(self.runs)

    @property
    def areas(self) -> np.ndarray:
        """Pixels of each mask, (M,)."""
        return coco_mask.area(self._coco()) if self.runs else np.zeros(0, np.uint32)

    def masks(self) -> Iterable[np.ndarray]:
        """One mask after the other, (H, W) bool."""
        return (coco_mask.decode(one).astype(bool) for one in self._coco())

    def with_rest(self) -> Regions:
        """With one more mask of all that none has, even if it is empty; as it is if it has that."""
        if self.has_rest:
            return self
        left = np.ones(self.size, bool)
        for mask in self.masks():
            left &= ~mask
        return Regions(self.size, (*self.runs, _encode(left)), True)

    def stack(self, size: tuple[int, int]) -> Tensor:
        """The masks at another size by nearest neighbours, (M, h, w) bool."""
        found = torch.zeros(len(self), *size, dtype=torch.bool)
        for number, mask in enumerate(self.masks()):
            found[number] = nearest(torch.from_numpy(mask), size)
        return found

    def painted(self) -> Tensor:
        """One map (H, W) int64: 0 where there is no mask, else the mask's place, from 1.

        Masks are painted by ascending area, so that a larger one covers smaller ones; the rest is
        not painted.
        """
        canvas = np.zeros(self.size, np.int64)
        masks = list(self._coco())[: len(self) - self.has_rest]
        for place in np.argsort(self.areas[: len(masks)], kind="stable"):
            canvas[coco_mask.decode(masks[place]) > 0] = 1 + place
        return torch.from_numpy(canvas)

    def to_bytes(self) -> bytes:
        """For a file; ``from_bytes`` reads it."""
        file = io.BytesIO()
        np.savez(
            file,
            size=self.size,
            has_rest=self.has_rest,
            lengths=np.array([len(one) for one in self.runs], np.int64),
            runs=np.frombuffer(b"".join(self.runs), np.uint8),
        )
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Regions:
        """Raises ValueError, KeyError or what zipfile raises for other bytes."""
        with np.load(io.BytesIO(content)) as saved:
            ends = np.cumsum(saved["lengths"])
            joined = saved["runs"].tobytes()
            runs = tuple(
                joined[end - length : end]
                for end, length in zip(ends, saved["lengths"], strict=True)
            )
            height, width = saved["size"].tolist()
            return cls((height, width), runs, bool(saved["has_rest"]))

    def _coco(self) -> list[dict]:
        return [dict(size=list(self.size), counts=one) for one in self.runs]


def _encode(mask: np.ndarray) -> bytes:
    return coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"]


def nearest(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Whole numbers or bools (H, W) at another size, each pixel the one at the floor of its place
    times the sides' ratio.
    """
    if tuple(values.shape) == tuple(size):
        return values
    return F.interpolate(values[None, None].float(), size=size)[0, 0].to(values.dtype)
