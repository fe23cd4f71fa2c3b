"""The one straight way: image, windows, method, similarity to text, stitched scores, labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, get_type_hints

import torch
from torch import Tensor

from sfp.clip.text_bank import TextBank
from sfp.errors import SFPError
from sfp.methods import Method
from sfp.options import check_type
from sfp.pipeline.decode import decode
from sfp.pipeline.score_map import ScoreMap
from sfp.pipeline.vocabulary import Vocabulary
from sfp.pipeline.windows import cut, window_grid
from sfp.refiners.pamr import pamr


@dataclass(frozen=True)
class Protocol:
    """How a method's features become labels (methods.md 3.3, 4); part of every result.

    Attributes:
        window: side of the sliding window in pixels; 0 for the whole image at once.
        stride: step between windows in pixels.
        logit_scale: factor of the averaged cosines before the softmax.
        prob_thd: least probability of a pixel's class; others become class 0.
        area_thd: least share of a class among foreground pixels, None for no such rule.
        pamr_iterations, pamr_dilations: refinement; 0 for none.
    """

    window: int = 224
    stride: int = 112
    logit_scale: float = 40.0
    prob_thd: float = 0.0
    area_thd: float | None = None
    pamr_iterations: int = 0
    pamr_dilations: tuple[int, ...] = (8, 16)

    def __post_init__(self):
        hints = get_type_hints(Protocol)
        for own in fields(Protocol):
            check_type(own.name, getattr(self, own.name), hints[own.name], own.default)
        if self.window < 0 or (self.window and not 0 < self.stride <= self.window):
            raise SFPError(
                f"window={self.window}, stride={self.stride} leave gaps; give 0 < stride <= window, or window=0 for whole images."
            )
        if not self.logit_scale > 0:
            raise SFPError(f"logit_scale={self.logit_scale} must be above 0; 40 is usual.")
        for name in ("prob_thd", "area_thd"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise SFPError(f"{name}={value} must lie in [0, 1]; give a share such as 0.1.")
        if (
            self.pamr_iterations < 0
            or any(d < 1 for d in self.pamr_dilations)
            or not self.pamr_dilations
        ):
            raise SFPError(
                f"PAMR needs pamr_iterations >= 0 and pamr_dilations >= 1, got {self.pamr_iterations} and {self.pamr_dilations}; "
                "10 and (8, 16) are usual."
            )
        object.__setattr__(self, "pamr_dilations", tuple(self.pamr_dilations))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Task:
    """What is asked of an image: classes, their text vectors (Q, D), and how scores become labels."""

    vocabulary: Vocabulary
    text: Tensor
    protocol: Protocol


class Pipeline:
    """A method, a vocabulary and a protocol; both doors, the mmseg segmentor and ``Segmenter``, walk through it.

    Args:
        method: windows (B, 3, H, W) and text vectors (Q, D) to scores (B, h, w, Q).
        text_bank: makes the text vectors.
        protocol: windows, thresholds, refinement.
        windows_at_once: largest batch of windows; as many as go best on the device, if None. A batch that runs out of
            memory is tried again by halves, which changes no result.

    Raises:
        SFPError: windows smaller than a patch, or no window at once.
    """

    def __init__(
        self,
        method: Method,
        text_bank: TextBank,
        protocol: Protocol | None = None,
        windows_at_once: int | None = None,
    ):
        self.method, self.text_bank = method, text_bank
        self.protocol = protocol or Protocol()
        patch = method.trunk.patch
        if 0 < self.protocol.window < patch:
            raise SFPError(
                f"window={self.protocol.window} is smaller than one patch ({patch}); give at least {patch}, or 0 for whole images."
            )
        check_type("windows_at_once", windows_at_once, int | None)
        if windows_at_once is not None and windows_at_once < 1:
            raise SFPError(
                f"windows_at_once={windows_at_once} must be at least 1; leave it out for as many as go best."
            )
        self.windows_at_once = windows_at_once

    @property
    def device(self) -> torch.device:
        return self.method.clip.device

    def embed_text(self, vocabulary: Vocabulary) -> Tensor:
        """Unit text vectors of all queries (Q, D)."""
        return self.text_bank.encode(vocabulary.queries)

    @torch.inference_mode()
    def score(self, images: Sequence[Tensor], text: Tensor) -> list[ScoreMap]:
        """Averaged scores, usually cosines, of normalised images (3, H, W): Q queries at their H x W pixels."""
        return self.score_texts(images, [text])[0]

    @torch.inference_mode()
    def score_texts(
        self, images: Sequence[Tensor], texts: Sequence[Tensor]
    ) -> list[list[ScoreMap]]:
        """Scores of several texts (Q, D) from one pass of the images: for each text those of ``score``.

        Windows of all images that have one size go through the method as one batch (of bounded size).
        """
        grids = [
            window_grid(*image.shape[1:], self.protocol.window, self.protocol.stride)
            for image in images
        ]
        places: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for i, grid in enumerate(grids):
            places[grid[0].size] += [(i, j) for j in range(len(grid))]
        found: list[list[list[Tensor]]] = [[[] for _ in images] for _ in texts]
        for size, members in places.items():
            while members:
                chunk = members[: self.batch_of(*size)]
                try:
                    seen = self.method.see(
                        torch.stack([cut(images[i], grids[i][j]) for i, j in chunk])
                    )
                    maps = [self.method.compare(seen, text).float() for text in texts]
                except RuntimeError as error:
                    self._lower(len(chunk), error)
                    continue
                for own, of_text in zip(found, maps, strict=True):
                    for (i, _), scores in zip(chunk, of_text, strict=True):
                        own[i].append(scores)
                members = members[len(chunk) :]
        return [
            [
                ScoreMap.of_windows(torch.stack(maps), grid, image.shape[1:])
                for maps, grid, image in zip(own, grids, images, strict=True)
            ]
            for own in found
        ]

    def batch_of(self, height: int, width: int) -> int:
        """How many windows of that size make a batch."""
        return self.windows_at_once or self.method.trunk.windows_at_once(height, width)

    def _lower(self, tried: int, error: RuntimeError) -> None:
        """After a batch of so many windows ran out of memory: take half of them from now on.

        Raises:
            RuntimeError: the error itself, where it is another one.
            SFPError: a single window was too much.
        """
        words = (
            "DefaultCPUAllocator",
            "could not create a primitive",
        )  # torch's, and oneDNN's for want of memory
        if not isinstance(error, torch.cuda.OutOfMemoryError) and not any(
            own in str(error) for own in words
        ):
            raise error
        if tried == 1:
            what = (
                f"One window of {self.protocol.window} pixels"
                if self.protocol.window
                else "A whole image as one window"
            )
            raise SFPError(
                f"{what} does not fit into the memory of {self.device} ({str(error).splitlines()[0]}); "
                "use smaller windows, a smaller model or another device."
            ) from error
        self.windows_at_once = tried // 2

    @torch.inference_mode()
    def __call__(
        self,
        images: Sequence[Tensor],
        vocabulary: Vocabulary,
        text: Tensor,
        sizes: Sequence[tuple[int, int]],
        keep_probabilities: bool = False,
    ) -> list[tuple[Tensor, Tensor | None]]:
        """Labels of images.

        Args:
            images: normalised float tensors (3, h, w), at the size that the windows slide over.
            vocabulary: the classes.
            text: their text vectors, from ``embed_text``.
            sizes: (H, W) of each label map, usually the image file's size.
            keep_probabilities: also return class probabilities.

        Returns:
            For each image labels (H, W) int64, and probabilities (K, H, W) float32 or None.

        Raises:
            SFPError: an image holds NaN or infinite numbers.
        """
        return self.segment(
            images, [Task(vocabulary, text, self.protocol)], [sizes], keep_probabilities
        )[0]

    @torch.inference_mode()
    def segment(
        self,
        images: Sequence[Tensor],
        tasks: Sequence[Task],
        sizes: Sequence[Sequence[tuple[int, int]]],
        keep_probabilities: bool = False,
    ) -> list[list[tuple[Tensor, Tensor | None]]]:
        """Labels of images for several tasks from one pass: for each task those of calling it alone.

        Args:
            tasks: vocabularies with their protocols, whose windows are the pipeline's own.
            sizes: for each task (H, W) of each label map.

        Raises:
            SFPError: an image holds NaN or infinite numbers.
        """
        images = [image.to(self.device) for image in images]
        for number, image in enumerate(images):
            if not bool(torch.isfinite(image).all()):
                raise SFPError(
                    f"Image {number} of the batch has NaN or infinite pixels; check how it was read and normalised."
                )
        scores = self.score_texts(images, [task.text for task in tasks])
        return [
            [
                self._decode(image, own, size, task, keep_probabilities)
                for image, own, size in zip(images, maps, shapes, strict=True)
            ]
            for task, maps, shapes in zip(tasks, scores, sizes, strict=True)
        ]

    def _decode(
        self, image: Tensor, scores: ScoreMap, size: tuple[int, int], task: Task, keep: bool
    ) -> tuple[Tensor, Tensor | None]:
        protocol, scores = task.protocol, scores.resized(size)
        if protocol.pamr_iterations:
            refined = pamr(
                image[None],
                scores.canvas()[None],
                protocol.pamr_iterations,
                protocol.pamr_dilations,
            )
            scores = ScoreMap.of_pixels(refined[0])
        return decode(
            scores, torch.tensor(task.vocabulary.class_of_query), logit_scale=protocol.logit_scale, prob_thd=protocol.prob_thd,
            area_thd=protocol.area_thd, keep_probabilities=keep,
        )  # fmt: skip
