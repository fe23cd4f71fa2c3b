"""What flows between the stages encode, look, score and refine.

An image as methods score it, and text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sfp.errors import SFPError
from sfp.images import read_image

if TYPE_CHECKING:
    from sfp.clip.text_bank import TextBank


@dataclass(frozen=True)
class Picture:
    """One image as the windows slide over it, and as it was before it was resized.

    Attributes:
        image: normalised, (3, H, W), as large as the windows slide over it; on the device that it
            came on.
        pixels: as it was read, (H0, W0, 3) uint8 RGB; None where only its file is known, or
            neither.
        path: its file, "" where it came from none.
    """

    image: Tensor
    pixels: np.ndarray | None = None
    path: str = ""

    def original(self) -> np.ndarray:
        """The pixels as they were read, (H0, W0, 3) uint8 RGB; from the file where they aren't at
        hand.

        Raises:
            SFPError: there is no file either, or it can't be read.
        """
        if self.pixels is not None:
            return self.pixels
        if not self.path:
            raise SFPError(
                "The original pixels of an image are asked for, and only its normalised tensor is"
                " known; give Picture(image, pixels=...) or its path."
            )
        return read_image(self.path)


@dataclass(frozen=True)
class View:
    """One image, its windows, and what a method made of them; ``view["features"]`` reads
    ``encoded``.

    Attributes:
        picture: the image.
        boxes: top, left, bottom, right of each window in its pixels, (n, 4) int64; all of one size.
        encoded: what ``Method.encode`` returned, the first axis of each tensor is n.
        looked: what ``Method.look`` returned of the whole image, None by default.
    """

    picture: Picture
    boxes: Tensor
    encoded: Mapping[str, Tensor]
    looked: Any = None

    @property
    def image(self) -> Tensor:
        """Normalised, (3, H, W)."""
        return self.picture.image

    def __getitem__(self, name: str) -> Tensor:
        return self.encoded[name]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of each window in pixels."""
        top, left, bottom, right = self.boxes[0].tolist()
        return bottom - top, right - left

    def crops(self) -> Tensor:
        """The windows' pixels, (n, 3, h, w)."""
        boxes = self.boxes.tolist()
        return torch.stack(
            [self.image[:, top:bottom, left:right] for top, left, bottom, right in boxes]
        )


@dataclass(frozen=True)
class Text:
    """What the image is compared with.

    Attributes:
        vectors: unit query vectors, (Q, D) float32.
        words: the word of each query.
        class_of_query: class index of each query, ascending; each a class of its own by default.
        bank: encodes further words; None where the vectors did not come from one.
    """

    vectors: Tensor
    words: tuple[str, ...] = ()
    class_of_query: tuple[int, ...] = ()
    bank: TextBank | None = field(default=None, repr=False, compare=False)

    def __post_init__(self):
        if not self.class_of_query:
            object.__setattr__(self, "class_of_query", tuple(range(len(self.vectors))))

    def __len__(self) -> int:
        return len(self.vectors)

    def to(self, device: torch.device) -> Text:
        moved = self.vectors.to(device)
        return self if moved is self.vectors else replace(self, vectors=moved)

    def encode(self, words: Sequence[str]) -> Tensor:
        """Unit vectors (n, D) of further words, with the same prompts."""
        return self.bank.encode(words).to(self.vectors.device)

    def prompts(self) -> Tensor:
        """Unit vectors of each query in each single prompt, (Q, P, D)."""
        return self.bank.encode_prompts(self.words).to(self.vectors.device)

    def describe(self, sentences: Sequence[Sequence[str]]) -> Tensor:
        """Unit vectors (Q, D) of each query's sentences instead of its prompts."""
        return self.bank.describe(sentences).to(self.vectors.device)
