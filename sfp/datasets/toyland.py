"""Toyland: the built-in world of cartoon scenes with pixel labels, for runs without any download.

A scene is a function of its split and number alone, so ``val`` scenes are the same everywhere and
are never among the ``train`` scenes. Things stand where they belong half of the time (boats at sea)
and anywhere in the other half, so that a model can't tell them by their surroundings alone.

``write_split`` lays scenes out like PASCAL VOC 2012: ``JPEGImages/*.jpg``,
``SegmentationClass/*.png`` (palette PNG, label = index into ``CLASSES``) and
``ImageSets/Segmentation/<split>.txt``.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sfp.datasets.cartoons import GROUND_PAINTERS, THING_PAINTERS, Canvas, Frame, draw_sky
from sfp.files import make_folder, whole_file

CLASSES = (
    "sky", "grass", "sea", "sand", "road", "snow",
    "house", "tree", "car", "boat", "sun", "star", "fish", "flower", "balloon", "mushroom",
)  # fmt: skip
GROUNDS = CLASSES[1:6]
THINGS = CLASSES[6:]
PALETTE = (
    (135, 190, 235), (96, 169, 23), (0, 80, 200), (227, 200, 120), (110, 110, 115), (235, 240, 250),
    (165, 85, 40), (0, 110, 60), (210, 30, 40), (120, 60, 160), (255, 190, 0), (255, 245, 120),
    (255, 120, 50), (235, 100, 180), (0, 180, 175), (130, 20, 60),
)  # fmt: skip
SPLITS = ("train", "tune", "val")
VAL_SCENES = 120


@dataclass(frozen=True)
class Scene:
    """One scene.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) uint8, indices into ``CLASSES``.
        things: class index and box (x0, y0, x1, y1) of each, in pixels.
    """

    image: np.ndarray
    labels: np.ndarray
    things: tuple[tuple[int, tuple[int, int, int, int]], ...]


_AT_HOME = {
    "house": ("grass", "sand", "snow"), "tree": ("grass", "snow"), "car": ("road",),
    "boat": ("sea",), "sun": ("sky",), "star": ("sky",), "fish": ("sea",), "flower": ("grass",),
    "balloon": ("sky",), "mushroom": ("grass",),
}  # fmt: skip


def make_scene(split: str, index: int) -> Scene:
    """The scene number ``index`` of a split.

    Raises:
        ValueError: unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"Toyland has no split {split!r}; choose one of {', '.join(SPLITS)}.")
    rng = np.random.default_rng([SPLITS.index(split), index])
    short, long = int(rng.integers(336, 385)), int(rng.integers(432, 513))
    height, width = (short, long) if rng.random() < 0.6 else (long, short)
    canvas = Canvas(height, width)
    layout = _draw_land(canvas, rng, height, width)
    things = _draw_things(canvas, rng, layout)
    image, labels = canvas.finish()
    return Scene(image, labels, things)


def _draw_land(canvas: Canvas, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Paint sky and one to three grounds; returns the layout, class indices (H, W)."""
    x = np.arange(width)

    def curve(level: float, swing: float) -> np.ndarray:
        phase, waves = rng.uniform(0, 6.28), rng.uniform(0.5, 1.6)
        return level * height + swing * height * np.sin(2 * math.pi * waves * x / width + phase)

    layout = np.zeros((height, width), np.uint8)
    rows = np.arange(height)[:, None]
    level = rng.uniform(0.25, 0.6)
    grounds = rng.permutation(len(GROUNDS))[: rng.choice([1, 2, 3], p=[0.3, 0.5, 0.2])]
    for k, ground in enumerate(grounds):
        edge = curve(level, rng.uniform(0, 0.05))
        layout[rows >= edge[None, :]] = 1 + ground
        level += (1 - level) * rng.uniform(0.35, 0.65) if k == 0 else (1 - level) * 0.5
    canvas.label = 0
    draw_sky(canvas, rng, layout == 0)
    for ground in grounds:
        canvas.label = int(1 + ground)
        region = layout == canvas.label
        GROUND_PAINTERS[CLASSES[canvas.label]](canvas, rng, region)
        # strokes may cross the edge of their region; the one below is painted over them
    return layout


def _draw_things(
    canvas: Canvas, rng: np.random.Generator, layout: np.ndarray
) -> tuple[tuple[int, tuple[int, int, int, int]], ...]:
    height, width = layout.shape
    placed: list[tuple[str, float, float, float]] = []
    for name in rng.permutation(THINGS)[: rng.integers(3, 7)]:
        r = min(height, width) * rng.uniform(0.12, 0.3)
        homes = [CLASSES.index(home) for home in _AT_HOME[name]]
        homes = [home for home in homes if (layout == home).sum() > r * r]
        flies = name in ("sun", "star", "balloon")
        for _ in range(12):
            x, y = rng.uniform(r * 0.8, width - r * 0.8), rng.uniform(r * 0.9, height - r * 0.9)
            foot = layout[int(y) if flies else min(height - 1, int(y + 0.7 * r)), int(x)]
            stray = not homes or rng.random() < 0.5
            clear = all(math.hypot(x - x2, y - y2) > 0.85 * (r + r2) for _, x2, y2, r2 in placed)
            if clear and (stray or foot in homes):
                placed.append((str(name), x, y, r))
                break
    placed.sort(key=lambda thing: thing[2] + thing[3])  # what stands lower is nearer
    things = []
    for name, x, y, r in placed:
        mirror = -1.0 if rng.random() < 0.5 else 1.0
        tilt = rng.uniform(-0.12, 0.12)
        canvas.label = CLASSES.index(name)
        THING_PAINTERS[name](Frame(canvas, x, y, r, mirror, tilt), rng)
        right, bottom = min(width, int(x + r) + 1), min(height, int(y + r) + 1)
        box = (max(0, int(x - r)), max(0, int(y - r)), right, bottom)
        things.append((canvas.label, box))
    return tuple(things)


def write_split(root: str | os.PathLike, split: str = "val", count: int = VAL_SCENES) -> Path:
    """Write ``count`` scenes of a split under ``root`` in VOC layout, and their list.

    The list file is written last and whole, so a root that has it is complete.

    Returns:
        The list file, ``root/ImageSets/Segmentation/<split>.txt``.

    Raises:
        SFPError: they can't be written.
    """
    names = write_scenes(root, split, count)
    listing = make_folder(Path(root) / "ImageSets/Segmentation") / f"{split}.txt"
    with whole_file(listing) as partial:
        partial.write_text("".join(f"{name}\n" for name in names))
    return listing


def write_scenes(root: str | os.PathLike, split: str = "val", count: int = VAL_SCENES) -> list[str]:
    """Write ``count`` scenes of a split under ``root``, without a list; files that exist are kept.

    Returns:
        The scenes' names.

    Raises:
        SFPError: they can't be written.
    """
    root = Path(root)
    for folder in ("JPEGImages", "SegmentationClass"):
        make_folder(root / folder, "set SFP_DATA to a folder that can be written")
    names = [f"{split}_{index:05d}" for index in range(count)]
    for index, name in enumerate(names):
        image_file = root / f"JPEGImages/{name}.jpg"
        label_file = root / f"SegmentationClass/{name}.png"
        if image_file.exists() and label_file.exists():
            continue
        scene = make_scene(split, index)
        labels = Image.fromarray(scene.labels, "P")
        labels.putpalette(np.pad(np.array(PALETTE, np.uint8), ((0, 240), (0, 0))).tobytes())
        with whole_file(image_file) as partial:
            Image.fromarray(scene.image).save(partial, quality=95, subsampling=0)
        with whole_file(label_file) as partial:
            labels.save(partial)
    return names
