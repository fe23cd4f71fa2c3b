"""Batches to train Toyland's CLIP on.

Crops and windows of scenes with captions, never pixel labels.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import open_clip
import torch
from torch import Tensor
from tqdm import tqdm

from sfp.clip.prompts import IMAGENET_PROMPTS
from sfp.datasets import toyland

SYNONYMS = {
    "grass": ("lawn", "meadow"), "sea": ("ocean", "water"), "sand": ("beach",), "road": ("street",),
    "house": ("home", "cottage"), "car": ("automobile",), "boat": ("ship", "sailboat"),
    "flower": ("blossom",), "mushroom": ("toadstool",),
}  # fmt: skip
SCENE_PATTERNS = (
    "{}.",
    "a picture of {}.",
    "a cartoon of {}.",
    "a scene with {}.",
    "there is {}.",
    "a drawing of {}.",
)
FIRST_THING = 1 + len(toyland.GROUNDS)
NAMED, PRESENT, ABSENT = 0.06, 0.04, 0.01  # share of the crop
TEXT_LENGTH = 32


class CropsWithCaptions(torch.utils.data.Dataset):
    """Item ``step`` is that step's whole batch: images (B, 3, 224, 224) uint8, tokens (B, 32),
    truth (B, B) int8.

    ``truth[i, j]`` is 1 where caption j is true of image i, 0 where it is false, -1 where it is in
    between.
    """

    def __init__(self, scenes: int, batch: int, steps: int, seed: int, windows: float = 0.0):
        """``windows``.

        Share of the images that are windows as an evaluation cuts them, not crops around a class.
        """
        self.scenes, self.batch, self.steps, self.seed, self.windows = (
            scenes,
            batch,
            steps,
            seed,
            windows,
        )
        self.tokenize = open_clip.SimpleTokenizer()

    def __len__(self) -> int:
        return self.steps

    def load(self) -> None:
        self.pool = [
            toyland.make_scene("train", i) for i in tqdm(range(self.scenes), desc="drawing scenes")
        ]
        self.places: list[list[tuple[int, tuple | None]]] = [[] for _ in toyland.CLASSES]
        for number, scene in enumerate(self.pool):
            for label, box in scene.things:
                self.places[label].append((number, box))
            share = (
                np.bincount(scene.labels.ravel(), minlength=len(toyland.CLASSES))
                / scene.labels.size
            )
            for label in range(1 + len(toyland.GROUNDS)):
                if share[label] > 0.05:
                    self.places[label].append((number, None))

    def crop(
        self, rng: np.random.Generator, label: int, side_out: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """A square crop with the class in its middle, resized.

        Image (S, S, 3), labels (S/4, S/4).
        """
        number, box = self.places[label][rng.integers(len(self.places[label]))]
        scene = self.pool[number]
        height, width = scene.labels.shape
        if box is None:
            rows, cols = np.nonzero(scene.labels[::8, ::8] == label)
            pick = rng.integers(len(rows))
            y, x, side = 8 * rows[pick], 8 * cols[pick], rng.uniform(56, 260)
        else:
            reach = max(box[2] - box[0], box[3] - box[1])
            side = reach * math.exp(rng.uniform(math.log(0.5), math.log(2.4)))
            x = (box[0] + box[2]) / 2 + rng.uniform(-0.25, 0.25) * reach
            y = (box[1] + box[3]) / 2 + rng.uniform(-0.25, 0.25) * reach
        side = int(np.clip(side, 40, min(height, width)))
        top, left = (
            int(np.clip(y - side / 2, 0, height - side)),
            int(np.clip(x - side / 2, 0, width - side)),
        )
        window = np.s_[top : top + side, left : left + side]
        method = cv2.INTER_AREA if side > side_out else cv2.INTER_LINEAR
        image = cv2.resize(scene.image[window], (side_out, side_out), interpolation=method)
        labels = cv2.resize(
            scene.labels[window], (side_out // 4, side_out // 4), interpolation=cv2.INTER_NEAREST
        )
        if rng.random() < 0.5:
            image, labels = image[:, ::-1], labels[:, ::-1]
        return image, labels

    def window(self, rng: np.random.Generator, label: int) -> tuple[np.ndarray, np.ndarray]:
        """A 224 x 224 window of a scene whose short side is 336, the class somewhere in it.

        Image, labels (56, 56).
        """
        number, box = self.places[label][rng.integers(len(self.places[label]))]
        scene = self.pool[number]
        height, width = scene.labels.shape
        side = round(224 * min(height, width) / 336)
        if box is None:
            rows, cols = np.nonzero(scene.labels[::8, ::8] == label)
            pick = rng.integers(len(rows))
            y, x = 8 * rows[pick], 8 * cols[pick]
        else:
            y, x = (box[1] + box[3]) / 2, (box[0] + box[2]) / 2
        top = int(np.clip(y - side * rng.uniform(0.1, 0.9), 0, height - side))
        left = int(np.clip(x - side * rng.uniform(0.1, 0.9), 0, width - side))
        part = np.s_[top : top + side, left : left + side]
        image = cv2.resize(scene.image[part], (224, 224), interpolation=cv2.INTER_LINEAR)
        labels = cv2.resize(scene.labels[part], (56, 56), interpolation=cv2.INTER_NEAREST)
        return (image[:, ::-1], labels[:, ::-1]) if rng.random() < 0.5 else (image, labels)

    def mosaic(self, rng: np.random.Generator, label: int) -> tuple[np.ndarray, np.ndarray]:
        """Four crops of half the side, one of them of the class.

        Image (224, 224, 3), labels (56, 56).
        """
        others = [label, *rng.integers(0, len(toyland.CLASSES), 3)]
        parts = [self.crop(rng, int(other), 112) for other in rng.permutation(others)]
        return tuple(
            np.concatenate(
                [
                    np.concatenate([p[k] for p in parts[:2]], 1),
                    np.concatenate([p[k] for p in parts[2:]], 1),
                ]
            )
            for k in (0, 1)
        )

    def caption(self, rng: np.random.Generator, named: list[int]) -> str:
        words = []
        for label in named:
            name = toyland.CLASSES[label]
            if name in SYNONYMS and rng.random() < 0.15:
                name = str(rng.choice(SYNONYMS[name]))
            words.append(name)
        if len(words) == 1:
            return IMAGENET_PROMPTS[rng.integers(len(IMAGENET_PROMPTS))].format(words[0])
        words = [f"{('a', 'the')[rng.integers(2)]} {word}" for word in words]
        joined = ", ".join(words[:-1]) + " and " + words[-1]
        return SCENE_PATTERNS[rng.integers(len(SCENE_PATTERNS))].format(joined)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        if not hasattr(self, "pool"):
            self.load()
        cv2.setNumThreads(1)
        rng = np.random.default_rng([self.seed, step])
        classes = len(toyland.CLASSES)
        images = np.empty((self.batch, 224, 224, 3), np.uint8)
        shares, names, captions = (
            np.zeros((self.batch, classes)),
            np.zeros((self.batch, classes), bool),
            [],
        )
        targets = rng.permutation(np.arange(self.batch) % classes)
        for i, target in enumerate(targets):
            kind = rng.random()
            if kind < 0.25:
                image, labels = self.mosaic(rng, int(target))
            elif kind < 0.25 + self.windows:
                image, labels = self.window(rng, int(target))
            else:
                image, labels = self.crop(rng, int(target), 224)
            gain, lift = rng.uniform(0.85, 1.15, 3) * rng.uniform(0.9, 1.1), rng.uniform(-12, 12)
            images[i] = np.clip(image * gain + lift, 0, 255)
            shares[i] = np.bincount(labels.ravel(), minlength=classes) / labels.size
            seen = np.flatnonzero(shares[i] > NAMED)
            things, grounds = seen[seen >= FIRST_THING], seen[seen < FIRST_THING]
            named = list(rng.permutation(things)[: rng.choice((1, 2, 3), p=[0.5, 0.3, 0.2])])
            if not named or (len(grounds) and rng.random() < 0.3):
                named.append(target if target in grounds else rng.choice(grounds))
            names[i, named] = True
            captions.append(self.caption(rng, [int(v) for v in rng.permutation(named)]))
        lowest = np.where(names[None], shares[:, None], 1.0).min(-1)  # (image, caption)
        truth = np.where(lowest > PRESENT, 1, np.where(lowest < ABSENT, 0, -1)).astype(np.int8)
        full, bare = shares[:, FIRST_THING:].max(1) > PRESENT, ~names[:, FIRST_THING:].any(1)
        truth[full[:, None] & bare[None] & (truth == 1)] = -1
        tokens = self.tokenize(captions)
        assert int((tokens != 0).sum(1).max()) <= TEXT_LENGTH
        return (
            torch.from_numpy(images).permute(0, 3, 1, 2),
            tokens[:, :TEXT_LENGTH],
            torch.from_numpy(truth),
        )
