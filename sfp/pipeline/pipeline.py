"""The one way of the data: image, windows, encode, score, stitch, refine, decode."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sfp.clip.text_bank import TextBank
from sfp.clip.trunk import Hook, LayerState
from sfp.errors import SFPError, is_want_of_memory
from sfp.methods import Method
from sfp.options import check_type
from sfp.pipeline.decode import decode
from sfp.pipeline.protocol import Protocol
from sfp.pipeline.score_map import ScoreMap
from sfp.pipeline.vocabulary import Vocabulary
from sfp.pipeline.windows import Window, cut, window_grid
from sfp.refiners import LabelRefiner
from sfp.stages import Picture, Text, View
from sfp.transfer import Doubts, to_device

Labels = tuple[Tensor, Tensor | None]  # (H, W) int64, and probabilities (K, H, W) float32 or None


@dataclass(frozen=True)
class Task:
    """What is asked of an image: text, and how its scores become labels."""

    text: Text
    protocol: Protocol


class Pipeline:
    """A method, a text bank and a protocol. The mmseg segmentor and ``Segmenter`` both use it.

    Args:
        method: makes windows' scores.
        text_bank: makes text vectors.
        protocol: windows, thresholds, refinement.
        windows_at_once: largest batch of windows; as many as go best on the device, if None. A
            batch that runs out of memory is tried again by halves.

    Raises:
        SFPError: windows smaller than a patch, or such that the method can't take, or no window at
            once; or a refiner's model can't be loaded.
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
                f"window={self.protocol.window} is smaller than one patch ({patch});"
                f" give at least {patch}, or 0 for whole images."
            )
        if self.protocol.window and method.whole_images:
            raise SFPError(
                f"{method.name} takes whole images, but window is {self.protocol.window};"
                " give window=0."
            )
        check_type("windows_at_once", windows_at_once, int | None)
        if windows_at_once is not None and windows_at_once < 1:
            raise SFPError(
                f"windows_at_once={windows_at_once} must be at least 1;"
                " leave it out for as many as go best."
            )
        self.windows_at_once = windows_at_once
        method.fit((patch, patch), self.protocol.window, self.protocol.stride)
        for refiner in self.protocol.refiners:
            refiner.backbones  # noqa: B018 - loads them, or says why not, before anything runs
        self.sigmoid_of(self.protocol)  # raises where it can't be

    def sigmoid_of(self, protocol: Protocol) -> tuple[float, float] | None:
        """t and b of a protocol's sigmoid; None where it has none.

        Raises:
            SFPError: the model has no learned bias, or the method a rule or a softmax of its own.
        """
        if protocol.sigmoid is False:
            return None
        clip, own = self.method.clip, ""
        if self.method.defines("decide"):
            own = "decides by a rule of its own"
        elif self.method.softmaxed:
            own = "makes probabilities by a softmax of its own"
        if own:
            raise SFPError(
                f"sigmoid={protocol.sigmoid} is given, but {self.method.name} {own};"
                " leave it out, or give another method."
            )
        if protocol.sigmoid is not True:
            return protocol.sigmoid
        if clip.logit_bias is None:
            raise SFPError(
                f"sigmoid=True needs a model that was trained with a sigmoid, such as"
                f" ViT-B-16-SigLIP, and {clip.name} was not; give a scale and a bias of your own,"
                " such as sigmoid=(100, -25), or leave it out."
            )
        return clip.logit_scale, clip.logit_bias

    @property
    def device(self) -> torch.device:
        return self.method.clip.device

    def encode_text(self, vocabulary: Vocabulary) -> Text:
        """The queries of a vocabulary with their unit vectors."""
        bank, queries = self.text_bank, vocabulary.queries
        return Text(bank.encode(queries), queries, vocabulary.class_of_query, bank)

    @torch.inference_mode()
    def views(self, images: Sequence[Tensor | Picture]) -> list[View]:
        """Each image's view: normalised images (3, H, W) through the method's look and encode.

        Windows of all images that have one size go through the method as one batch of bounded size.
        A bare tensor is a picture of which nothing else is known.
        """
        pictures = [
            self._fitted(own if isinstance(own, Picture) else Picture(own)) for own in images
        ]
        images = [to_device(picture.image, self.device) for picture in pictures]
        grids = [self._windows(*image.shape[1:]) for image in images]
        boxes, looked = [_boxes(grid) for grid in grids], self._look(pictures, images)
        places: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for i, grid in enumerate(grids):
            places[grid[0].size] += [(i, j) for j in range(len(grid))]
        encoded: list[dict[str, list[Tensor]]] = [defaultdict(list) for _ in images]
        for size, members in places.items():
            while members:
                chunk = members[: self.batch_of(*size)]
                try:
                    windows = torch.stack([cut(images[i], grids[i][j]) for i, j in chunk])
                    where = [boxes[i][j].tolist() for i, j in chunk]
                    parts = self.method.parts([looked[i] for i, _ in chunk], where)
                    found = self.method.run(windows, parts)
                except (RuntimeError, MemoryError) as error:
                    self._lower(len(chunk), error)
                    continue
                for name, values in found.items():
                    for (i, _), value in zip(chunk, values, strict=True):
                        encoded[i][name].append(value)
                members = members[len(chunk) :]
        return [
            View(picture, own_boxes, {k: torch.stack(v) for k, v in own.items()}, seen)
            for picture, own_boxes, own, seen in zip(pictures, boxes, encoded, looked, strict=True)
        ]

    def fitted(self, size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) that windows slide over in an image of a size."""
        return self.method.fit(size, self.protocol.window, self.protocol.stride)

    def _fitted(self, picture: Picture) -> Picture:
        size = tuple(picture.image.shape[1:])
        wanted = self.fitted(size)
        if wanted == size:
            return picture
        image = F.interpolate(
            picture.image[None].float(), size=wanted, mode="bilinear", align_corners=False
        )
        return replace(picture, image=image[0])

    def _windows(self, height: int, width: int) -> list[Window]:
        return window_grid(height, width, self.protocol.window, self.protocol.stride)

    def _look(self, pictures: Sequence[Picture], on_device: Sequence[Tensor]) -> list[object]:
        if not self.method.defines("look"):
            return [None] * len(pictures)
        pairs = zip(pictures, on_device, strict=True)
        return [self.method.look(replace(picture, image=image)) for picture, image in pairs]

    def batch_of(self, height: int, width: int) -> int:
        """How many windows of that size make a batch."""
        return self.windows_at_once or self.method.trunk.windows_at_once(height, width)

    def _lower(self, tried: int, error: RuntimeError | MemoryError) -> None:
        """After a batch of so many windows ran out of memory: take half of them from now on.

        Raises:
            RuntimeError: the error itself, where it is another one, such as of a wrong type.
            SFPError: a single window was too much.
        """
        if not is_want_of_memory(error):
            raise error
        if tried == 1:
            window = self.protocol.window
            what = f"One window of {window} pixels" if window else "A whole image as one window"
            reason = str(error).splitlines() or [type(error).__name__]
            raise SFPError(
                f"{what} does not fit into the memory of {self.device}"
                f" ({reason[0]}); use smaller windows, a smaller model or another device."
            ) from error
        self.windows_at_once = tried // 2

    @torch.inference_mode()
    def score(
        self,
        view: View,
        text: Text,
        size: tuple[int, int] | None = None,
        doubts: Doubts | None = None,
    ) -> ScoreMap:
        """Averaged scores, usually cosines, of an image: Q queries at ``size`` (H, W), or at that
        of ``view.image`` if None.

        Args:
            doubts: takes the question whether they are finite, which is asked here if None.

        Raises:
            SFPError: they are NaN or infinite; the layer where that begins is named.
        """
        text, own = text.to(self.device), tuple(view.image.shape[1:])
        maps = self.method.score(view, text)
        asked = doubts or Doubts()
        asked.require(torch.isfinite(maps).all(), partial(self._find_not_finite, view))
        if doubts is None or self.method.refines_pixels(text):  # which may read them on the CPU
            asked.settle()
        if self.method.joins_windows:
            return ScoreMap.of_pixels(maps.permute(2, 0, 1)).resized(size or own)
        scores = ScoreMap.of_windows(maps.float(), self._windows(*own), own)
        if self.method.refines_pixels(text):
            pixels = self.method.refine_pixels(scores.canvas(), view, text)
            scores = ScoreMap.of_pixels(self._finite(pixels, self.method.name))
        return scores.resized(size or own)

    @staticmethod
    def _finite(maps: Tensor, refiner: str) -> Tensor:
        """The maps; raises SFPError where a refiner made them NaN or infinite."""
        if not bool(torch.isfinite(maps).all()):
            raise SFPError(
                f"The refinement by {refiner} made the scores NaN or infinite;"
                " give it other options, or leave it out."
            )
        return maps

    def _find_not_finite(self, view: View) -> None:
        """Raises SFPError with where the scores of a view become NaN or infinite."""
        trunk = self.method.trunk
        every = Hook(LayerState.require_finite, range(1, trunk.layers + 1))
        for windows in view.crops().split(self.batch_of(*view.size)):
            trunk.run(windows.to(self.device), [every])
        raise SFPError(
            f"The scores of {self.method.name} are NaN or infinite in"
            f" {self.method.clip.precision}, though all {trunk.layers} layers of the image tower"
            " are finite; give precision='fp32' or 'bf16' (config: model.precision), or other"
            " options of the method."
        )

    @torch.inference_mode()
    def segment(
        self,
        images: Sequence[Tensor | Picture],
        tasks: Sequence[Task],
        sizes: Sequence[tuple[int, int]],
        keep_probabilities: bool | Literal["label"] = False,
        doubts: Doubts | None = None,
    ) -> list[list[Labels]]:
        """Labels of images for several tasks from one pass: for each task those of asking it alone.

        Args:
            images: normalised float tensors (3, h, w), at the size that the windows slide over,
                or such in a ``Picture``, which also knows the original pixels and the file.
            tasks: their protocols agree in window and stride with the pipeline's.
            sizes: (H, W) of each label map, usually the image file's size.
            keep_probabilities: also return class probabilities; "label": those of the labels alone.
            doubts: takes the questions whether all is finite, for who copies the labels to the CPU
                and asks in the same copy; they are asked here if None.

        Returns:
            For each task and image labels (H, W) int64, and probabilities (K, H, W) float32 or
            None.

        Raises:
            SFPError: an image holds NaN or infinite numbers, or a task has other windows.
        """
        for task in tasks:
            for key in ("window", "stride"):
                if getattr(task.protocol, key) != getattr(self.protocol, key):
                    raise SFPError(
                        f"A task has {key}={getattr(task.protocol, key)}, the pipeline"
                        f" {getattr(self.protocol, key)}; give them one."
                    )
        asked = doubts or Doubts()
        for number, own in enumerate(images):
            image = own.image if isinstance(own, Picture) else own
            asked.require(torch.isfinite(image).all(), partial(_refuse_image, number))
        views = self.views(images)
        found: list[list[Labels]] = []
        for task in tasks:
            found.append([])
            for view, size in zip(views, sizes, strict=True):
                with self._refusing_want_of_memory(task, size):
                    found[-1].append(self._label(view, task, size, keep_probabilities, asked))
        if doubts is None:
            asked.settle()
        return found

    @contextmanager
    def _refusing_want_of_memory(self, task: Task, size: tuple[int, int]) -> Iterator[None]:
        """Raises SFPError where the labels of a size take too much memory."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_want_of_memory(error):
                raise
            classes, (height, width) = task.text.class_of_query[-1] + 1, size
            raise SFPError(
                f"The labels of {width}x{height} pixels for {classes} classes do not fit into the"
                f" memory of {self.device} ({str(error).splitlines()[0]}); ask for fewer names,"
                " leave refiners and probabilities out, or make the picture smaller."
            ) from error

    def _label(
        self,
        view: View,
        task: Task,
        size: tuple[int, int],
        keep: bool | Literal["label"],
        doubts: Doubts,
    ) -> Labels:
        text, protocol = task.text.to(self.device), task.protocol
        scores = self.score(view, text, size, doubts)
        of_labels = [own for own in protocol.refiners if isinstance(own, LabelRefiner)]
        refiners = [own for own in protocol.refiners if not isinstance(own, LabelRefiner)]
        if self.method.defines("refine"):
            refiners.insert(0, self.method.refine)
        if refiners or of_labels or self.method.defines("relabel"):  # they may read on the CPU
            doubts.settle()
        if refiners:
            maps = scores.canvas()
            for refiner in refiners:
                name = getattr(refiner, "name", self.method.name)
                maps = self._finite(refiner(maps, view, text), name)
            scores = ScoreMap.of_pixels(maps)
        keys = ("logit_scale", "prob_thd", "area_thd")
        options = {key: getattr(protocol, key) for key in keys}
        if self.method.defines("decide"):
            options["decide"] = partial(self.method.decide, text=text)
        options["sigmoid"] = self.sigmoid_of(protocol)
        classes = torch.tensor(text.class_of_query)
        relabels = self.method.defines("relabel")
        # of the label alone: of the label that stays
        every = bool(of_labels) or (relabels and keep == "label")
        labels, probabilities = decode(scores, classes, keep_probabilities=every or keep, **options)
        if relabels:
            labels = self.method.relabel(labels, view)
        for refiner in of_labels:
            labels, probabilities = refiner(labels, probabilities, view, text)
        if every and keep == "label":
            probabilities = probabilities.gather(0, labels[None])[0]
        return labels, probabilities if keep else None


def _refuse_image(number: int) -> None:
    raise SFPError(
        f"Image {number} of the batch has NaN or infinite pixels; check how it was read and"
        " normalised."
    )


def _boxes(windows: Sequence[Window]) -> Tensor:
    """Top, left, bottom, right of each window, (n, 4) int64."""
    return torch.tensor([[getattr(w, side.name) for side in fields(Window)] for w in windows])
