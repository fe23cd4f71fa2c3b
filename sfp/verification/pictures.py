"""The photographs that a verification looks at, each with the word for it.

None is part of this package: they are given, or come with packages that it needs (scikit-learn's
and Matplotlib's sample pictures, which are free), or belong to a dataset that is prepared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sfp.clip.clip import FrozenCLIP
from sfp.datasets import toyland
from sfp.images import read_image, resize_short_side

TWENTY = (
    "airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa",
    "train", "television",
)  # fmt: skip
_SHIPPED = (  # package, file in it, the word
    ("sklearn", "datasets/images/flower.jpg", "flower"),
    ("sklearn", "datasets/images/china.jpg", "temple"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg", "woman"),
)
_ALIKE = {"woman": ("person",), "flower": ("potted plant",)}  # words that fit the picture, too


@dataclass(frozen=True)
class Photograph:
    """A picture and the word for it.

    Attributes:
        name: for people.
        pixels: (H, W, 3) uint8 RGB.
        word: what it shows.
        words: the word among others, none of which fits.
    """

    name: str
    pixels: np.ndarray
    word: str
    words: tuple[str, ...]


def among_twenty(word: str, others: Sequence[str] = TWENTY) -> tuple[str, ...]:
    """A word and nineteen others, or as many as there are."""
    alike = {word.lower(), *_ALIKE.get(word, ())}
    return (word, *[other for other in others if other.lower() not in alike][:19])


def photographs(given: Sequence[tuple[Path, str]]) -> list[Photograph]:
    """Those that were given, else those that ship with other packages.

    Raises:
        SFPError: one can't be read.
    """
    files = list(given)
    for package, file, word in () if given else _SHIPPED:
        spec = find_spec(package)
        path = Path(spec.origin).parent / file if spec and spec.origin else None
        if path is not None and path.is_file():
            files.append((path, word))
    return [Photograph(p.name, read_image(p), word, among_twenty(word)) for p, word in files]


def toyland_scene(index: int) -> Photograph:
    """A scene of Toyland; its word is that of its first thing."""
    scene = toyland.make_scene("val", index)
    word = toyland.CLASSES[scene.things[0][0]] if scene.things else toyland.CLASSES[0]
    words = among_twenty(word, toyland.CLASSES)
    return Photograph(f"Toyland's scene {index}", scene.image, word, words)


def toyland_things(scenes: int) -> Iterator[Photograph]:
    """The things of Toyland's scenes, each cut out by its box: its CLIP knows single things."""
    for index in range(scenes):
        scene = toyland.make_scene("val", index)
        for place, (left, top, right, bottom) in scene.things:
            word, crop = toyland.CLASSES[place], scene.image[top:bottom, left:right]
            words = among_twenty(word, toyland.CLASSES)
            yield Photograph(f"{word} of scene {index}", crop, word, words)


def whole_window(pixels: np.ndarray, side: int) -> Tensor:
    """A picture as CLIP was trained on it: short side to ``side``, the centre: (3, side, side)
    float32 in [0, 255].
    """
    resized = resize_short_side(pixels, side)
    top, left = ((length - side) // 2 for length in resized.shape[1:])
    return resized[:, top : top + side, left : left + side]


def batch_of_windows(clip: FrozenCLIP, pixels: np.ndarray, count: int = 3) -> Tensor:
    """Normalised windows (count, 3, g p, g p) of a picture at the native grid: its whole, mirrored
    and turned, so that they differ.
    """
    g, _ = clip.trunk.native_grid
    whole = whole_window(pixels, g * clip.trunk.patch)
    turned = [
        whole,
        whole.flip(2),
        whole.flip(1),
        whole.mT,
        *[whole.roll(31 * i, 2) for i in range(9)],
    ]
    return clip.normalise(torch.stack(turned[:count]))


def square(pixels: np.ndarray, side: int) -> Tensor:
    """A crop of any shape as (3, side, side) float32 in [0, 255]."""
    planes = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float()
    return F.interpolate(planes, (side, side), mode="bilinear", align_corners=False)[0]
