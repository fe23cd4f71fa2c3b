"""``Segmenter``: the pipeline as a Python library."""

from __future__ import annotations

import functools
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import sfp
from sfp.clip import load_clip
from sfp.clip.clip import FrozenCLIP
from sfp.clip.loading import check_weights
from sfp.clip.prompts import prompts_sha256
from sfp.clip.text_bank import TextBank
from sfp.errors import SFPError
from sfp.images import ImageLike, StoredImage, read_image, resize_short_side, resized_size
from sfp.inspection import Inspection, inspect_image
from sfp.methods import METHODS, build_method, check_method
from sfp.options import check_type
from sfp.outliers import Detector
from sfp.pipeline import Pipeline, Protocol, Task, Vocabulary
from sfp.pipeline.windows import window_grid
from sfp.result import Segmentation
from sfp.stages import Picture, Text
from sfp.transfer import Doubts

Names: TypeAlias = Sequence[str | Sequence[str]]
Kept: TypeAlias = bool | Literal["label"]
_MOST_SCORES = 4 << 30  # bytes of one picture's scores
_BATCH_BYTES = 512 << 20  # of the results that ``many`` makes at once
_READERS = 2
_READ_AHEAD = 4


@dataclass(frozen=True)
class _Question:
    """What is asked of an image: the names of the labels, the pipeline's task, and provenance."""

    names: tuple[str, ...]
    task: Task
    provenance: dict[str, Any]


class Segmenter:
    """Segments pictures by words.

    >>> segmenter = Segmenter("SFP", model="Toyland", device="cpu")
    >>> from sfp.datasets import toyland
    >>> result = segmenter(toyland.make_scene("val", 0).image, ["sky", "grass", "sun"])
    >>> result.labels.shape, result.names
    ((377, 453), ('sky', 'grass', 'sun'))

    Text vectors of the last 32 vocabularies are kept, so the same names cost nothing again.

    Args:
        method: one of ``sfp.list_methods()``.
        model, pretrained, device, precision, quick_gelu, head_width, pixel_mean, pixel_std,
            weights_sha256: see ``load_clip``; ``model="Toyland"`` needs no download. ``model`` may
            be a frozen CLIP from ``load_clip``, which several segmenters then share.
        short_side: the picture's short side is resized to it before windows are cut.
        prompts, text_cache: see ``TextBank``.
        options: fields of ``Protocol`` (``window``, ``stride``, ``prob_thd``, ``refine`` ...) and
            options of the method (``purify``, ``pm`` ...).

    Raises:
        SFPError: unknown method, model or option.
    """

    def __init__(
        self,
        method: str = "SFP",
        model: str | FrozenCLIP = "ViT-B-16",
        pretrained: Any = "openai",
        device: str | torch.device | None = None,
        *,
        precision: str | None = None,
        quick_gelu: bool | None = None,
        head_width: int | None = None,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        short_side: int = 336,
        prompts: str | os.PathLike | Sequence[str] = "imagenet80",
        text_cache: str | os.PathLike | bool | None = None,
        weights_sha256: str | None = None,
        **options: Any,
    ):
        resized_size(224, 224, short_side)  # raises for what is no number of pixels
        if METHODS.get(method).whole_images:
            options.setdefault("window", 0)
        protocol, of_method = Protocol.split(options)
        of_method = check_method(method, of_method, Protocol.options_beside(Segmenter))
        clip = model
        if not isinstance(model, FrozenCLIP):
            clip = load_clip(
                model,
                pretrained,
                device=device,
                precision=precision,
                quick_gelu=quick_gelu,
                head_width=head_width,
                pixel_mean=pixel_mean,
                pixel_std=pixel_std,
            )
        check_weights(clip, weights_sha256)
        dense = build_method(method, clip, **of_method)
        self.pipeline = Pipeline(dense, TextBank(clip, prompts, text_cache), protocol)
        self.short_side = short_side
        self._encode_text = functools.lru_cache(maxsize=32)(self.pipeline.text_bank.encode)

    def __repr__(self) -> str:
        return f"Segmenter({self.pipeline.method!r}, short_side={self.short_side})"

    def __call__(
        self,
        image: ImageLike,
        names: Names,
        *,
        background: str | Sequence[str] | None = None,
        prob_thd: float | None = None,
        keep_scores: Kept = True,
    ) -> Segmentation:
        """Segment one picture.

        Args:
            image: a path, a PIL image, an array (H, W, 3) uint8 in RGB order, or a tensor
                (3, H, W) uint8 or float in [0, 1]; grey and transparent ones too, see
                ``read_image``.
            names: what to look for; a name may be a list of synonyms.
            background: the name of what none of ``names`` fits; it comes first in the result, as
                label 0. A text is only a label: CLIP isn't asked for it, and a pixel gets it where
                no name is as probable as ``prob_thd``, which is then also its score. A list of
                words, such as ["background", "wall", "floor"], is asked for like any other name (as
                the datasets with a background class do), and unlikely pixels fall to it besides.
            prob_thd: least probability of a pixel's name, the segmenter's own if None. Needs a
                background, or names whose first is called so.
            keep_scores: keep the probabilities (K, H, W); without them a large picture takes far
                less memory. "label" keeps those of each pixel's own name, the result's
                ``confidence``.

        Raises:
            SFPError: the image can't be read, is thinner than a patch, or its scores would take
                more than 4 GiB; names are empty or stand twice; or a threshold and the background
                don't fit each other.
        """
        question = self._question(names, background, prob_thd)
        return self._answer([self._read(image)], [question], keep_scores)[0][0]

    def many(
        self,
        images: Iterable[ImageLike],
        names: Names,
        *,
        background: str | Sequence[str] | None = None,
        prob_thd: float | None = None,
        keep_scores: Kept = True,
        yield_errors: bool = False,
    ) -> Iterator[Segmentation | SFPError]:
        """Segment many pictures: results in their order, those of one by one.

        Pictures are read ahead by two threads, and windows of several go through the model as one
        batch. At any time at most four pictures wait and 512 MiB of results (but at least one) are
        made at once, however many there are.

        Args:
            images: any iterable of what ``__call__`` takes, a generator too.
            names, background, prob_thd, keep_scores: see ``__call__``.
            yield_errors: an image that can't be segmented gives its ``SFPError`` in the place of a
                result.

        Raises:
            SFPError: see ``__call__``; that of an image when its turn comes, unless
                ``yield_errors``.
        """
        array = isinstance(images, (np.ndarray, Tensor)) and images.ndim != 4
        if array or isinstance(images, (str, os.PathLike, Image.Image)):
            raise SFPError(
                f"many got a single {type(images).__name__}; give a list of images,"
                " or call the segmenter on the one."
            )
        if not isinstance(images, Iterable):
            raise SFPError(f"many got {images!r}; give a list of images.")
        question = self._question(names, background, prob_thd)
        return self._stream(images, question, keep_scores, yield_errors)

    def vocabularies(
        self,
        image: ImageLike,
        vocabularies: Sequence[Names],
        *,
        background: str | Sequence[str] | None = None,
        prob_thd: float | None = None,
        keep_scores: Kept = True,
    ) -> list[Segmentation]:
        """Segment one picture by several lists of names in one pass of the model.

        Returns:
            For each list what ``__call__`` gives.

        Raises:
            SFPError: see ``__call__``.
        """
        questions = [self._question(names, background, prob_thd) for names in vocabularies]
        if not questions:
            return []
        answers = self._answer([self._read(image)], questions, keep_scores)
        return [results[0] for results in answers]

    def inspect(
        self,
        image: ImageLike,
        *,
        short_side: int = 224,
        box: tuple[int, int, int, int] | None = None,
        detectors: Sequence[str | Detector] | None = None,
        heads: Sequence[int] = (),
        mlp: Sequence[int] = (),
    ) -> Inspection:
        """What each layer of CLIP does with one picture, before and after purification.

        Args:
            image: see ``__call__``.
            short_side: the picture, or its ``box``, goes through the model as one window with this
                short side.
            box: (left, top, right, bottom) in pixels of the picture; all of it if None.
            detectors: names of ``sfp.list_detectors()``, or detectors made by
                ``sfp.build_detector``; SOM (which needs a class token), L2 and LOF if None.
            heads: layers, from 1, of which each head's attention is kept, too.
            mlp: layers of which the MLP's hidden units are kept, too.

        Raises:
            SFPError: the image can't be read, the box is not inside it, there is no such layer, or
                so many patches would take over 2 GiB.
        """
        return inspect_image(
            self.pipeline.method,
            read_image(image),
            short_side=short_side,
            box=box,
            detectors=detectors,
            heads=heads,
            mlp=mlp,
        )

    def protocol(
        self,
        names: Names | None = None,
        *,
        background: str | Sequence[str] | None = None,
        prob_thd: float | None = None,
    ) -> dict[str, Any]:
        """What makes a result: method, weights, prompts, sizes, thresholds, and the names asked
        for.

        Plain values, the same after a round trip through JSON.
        """
        if names is not None:
            return self._question(names, background, prob_thd).provenance
        method, prompts = self.pipeline.method, self.pipeline.text_bank.prompts
        clip = method.clip
        backbones = {**method.backbones, **self.pipeline.protocol.backbones}
        provenance = {
            "sfp": sfp.__version__,
            "method": method.name,
            "options": method.options(),
            "purifier": repr(method.purifier.detector) if method.purifier else None,
            "registers": method.appended and method.appended.as_dict(),
            "model": clip.name,
            "pretrained": clip.pretrained,
            "weights_sha256": clip.fingerprint,
            "quick_gelu": clip.quick_gelu,
            "pixel_mean": clip.pixel_mean,
            "pixel_std": clip.pixel_std,
            "backbones": {name: own.fingerprint for name, own in backbones.items()},
            "precision": clip.precision,
            "prompts": len(prompts),
            "prompts_sha256": prompts_sha256(prompts),
            "short_side": self.short_side,
            **self.pipeline.protocol.as_dict(),
        }
        return json.loads(json.dumps(provenance, default=repr))

    def _question(
        self, names: Names, background: str | Sequence[str] | None, prob_thd: float | None
    ) -> _Question:
        vocabulary, label = Vocabulary.from_names(names), None
        protocol = self.pipeline.protocol
        if prob_thd is not None:
            protocol = replace(protocol, prob_thd=prob_thd)
        if isinstance(background, str):
            words = vocabulary.words
            vocabulary = vocabulary.with_background(background)
            label = vocabulary.names[0]
            words_softmaxed = 0 if protocol.sigmoid else len(vocabulary.queries)
            _require_reached(label, words_softmaxed, protocol.prob_thd)
        else:
            check_type("background", background, Sequence[str] | None)
            if background is not None:
                where = "The background with the names"
                vocabulary = Vocabulary.from_names([background, *names], where)
            else:
                protocol.require_background(vocabulary.names[0], "the names")
            words = vocabulary.words
        bank, queries = self.pipeline.text_bank, vocabulary.queries
        text = Text(self._encode_text(queries), queries, vocabulary.class_of_query, bank)
        provenance = self.protocol()
        provenance |= dict(prob_thd=protocol.prob_thd, words=words, background=label)
        return _Question(vocabulary.names, Task(text, protocol), provenance)

    def _answer(
        self, pictures: Sequence[Picture], questions: Sequence[_Question], keep_scores: Kept
    ) -> list[list[Segmentation]]:
        """For each question a result for each picture."""
        kept = sum(_kept(question, keep_scores) for question in questions)
        for picture in pictures:
            _check_scores(picture.pixels, kept)
        sizes = [picture.pixels.shape[:2] for picture in pictures]
        tasks = [question.task for question in questions]
        own = keep_scores == "label"
        doubts = Doubts()
        found = self.pipeline.segment(pictures, tasks, sizes, keep_scores, doubts)
        labelled = iter(doubts.settle([labels for maps in found for labels, _ in maps]))
        return [
            [
                Segmentation(
                    next(labelled).numpy(),
                    question.names,
                    None if scores is None or own else scores.cpu().numpy(),
                    picture.pixels,
                    question.provenance,
                    scores.cpu().numpy() if own else None,
                )
                for picture, (_, scores) in zip(pictures, maps, strict=True)
            ]
            for question, maps in zip(questions, found, strict=True)
        ]

    def _read(self, image: ImageLike) -> Picture:
        """An image as it was read, and at the size that the windows slide over."""
        pixels, clip = read_image(image), self.pipeline.method.clip
        resized = resize_short_side(pixels, self.short_side, clip.trunk.patch)
        path = image.path if isinstance(image, StoredImage) else image
        path = str(path) if isinstance(path, (str, os.PathLike)) else ""
        return Picture(clip.normalise(resized), pixels, path)

    def _stream(
        self,
        images: Iterable[ImageLike],
        question: _Question,
        keep_scores: Kept,
        yield_errors: bool,
    ) -> Iterator[Segmentation | SFPError]:
        names = _kept(question, keep_scores)
        batch: list[Picture] = []
        windows = size = 0
        for picture in _read_ahead(images, self._read):
            more_windows = more_size = most = 0
            if isinstance(picture, Picture):
                try:
                    more_windows, most, more_size = self._cost(picture.pixels, names)
                except SFPError as error:
                    picture = error
            full = windows + more_windows > most or size + more_size > _BATCH_BYTES
            if batch and (full or isinstance(picture, SFPError)):
                yield from self._answer(batch, [question], keep_scores)[0]
                batch, windows, size = [], 0, 0
            if isinstance(picture, SFPError):
                if not yield_errors:
                    raise picture
                yield picture
            else:
                batch.append(picture)
                windows, size = windows + more_windows, size + more_size
        if batch:
            yield from self._answer(batch, [question], keep_scores)[0]

    def _cost(self, pixels: np.ndarray, names: int) -> tuple[int, int, int]:
        """A picture's number of windows, how many make a batch, and the bytes of its results."""
        _check_scores(pixels, names)
        patch, protocol = self.pipeline.method.trunk.patch, self.pipeline.protocol
        resized = resized_size(*pixels.shape[:2], self.short_side, patch)
        height, width = self.pipeline.fitted(resized)
        windows = window_grid(height, width, protocol.window, protocol.stride)
        at_once = self.pipeline.batch_of(*windows[0].size)
        return len(windows), at_once, pixels[..., 0].size * (4 * names + 11)


def _require_reached(background: str, words: int, prob_thd: float) -> None:
    """Raises SFPError where no pixel could fall to a background that is only a label.

    ``words``: of how many a softmax makes probabilities; 0 with a sigmoid of each.
    """
    if not words and not prob_thd:
        raise SFPError(
            f"Nothing would fall to the background {background!r}, since prob_thd is 0; set it,"
            " such as prob_thd=0.5."
        )
    least = 1 / words if words else 0.0
    if prob_thd > least:
        return
    hint = f"set prob_thd between {least:.2g} and 1" if least < 1 else "name more things"
    raise SFPError(
        f"Nothing would fall to the background {background!r}: the best of {words} words always has"
        f" a probability of at least {least:.2g}, and prob_thd is {prob_thd:g}; {hint}, or give the"
        f" background as a list of words to ask for, such as [{background!r}, 'wall', 'floor']."
    )


def _kept(question: _Question, keep_scores: Kept) -> int:
    """How many maps of probabilities are kept of a picture."""
    check_type("keep_scores", keep_scores, Kept, True)
    return 1 if keep_scores == "label" else len(question.names) if keep_scores else 0


def _check_scores(pixels: np.ndarray, names: int) -> None:
    """Raises SFPError where the scores of a picture would take too much memory."""
    height, width = pixels.shape[:2]
    if 4 * names * height * width > _MOST_SCORES:
        taken = 4 * names * height * width / (1 << 30)
        raise SFPError(
            f"The scores of {names} names on {width}x{height} pixels would take {taken:.1f} GiB;"
            " pass keep_scores=False, or make the picture smaller."
        )


def _read_ahead(
    images: Iterable[ImageLike], read: Callable[[ImageLike], Picture]
) -> Iterator[Picture | SFPError]:
    """The pictures in order, or the error of one, a few of them read before they are asked for."""
    waiting: deque[Future] = deque()
    left = iter(images)
    with ThreadPoolExecutor(_READERS, "read images") as readers:
        try:
            waiting.extend(readers.submit(read, image) for image in islice(left, _READ_AHEAD))
            while waiting:
                future = waiting.popleft()
                waiting.extend(readers.submit(read, image) for image in islice(left, 1))
                error = future.exception()
                if error is not None and not isinstance(error, SFPError):
                    raise error
                yield error or future.result()
        finally:
            readers.shutdown(cancel_futures=True)
