"""What every detector is: a callable from a layer's state to an outlier mask and the scores behind it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sfp.clip.trunk import Attention, LayerState
from sfp.registry import Registry

DETECTORS = Registry("detector", "sfp.outliers")


class Detector(ABC):
    """Base class. A new detector is one file in this folder that registers its class in ``DETECTORS``.

    Every statistic is per image; the class token is never an outlier.

    Attributes:
        attention: how much of the layer's attention weights it reads.
    """

    name: ClassVar[str]
    attention: ClassVar[Attention] = Attention.NONE

    @abstractmethod
    def __call__(self, state: LayerState) -> tuple[Tensor, Tensor]:
        """Outlier mask (B, N) bool and scores (B, N) float32, larger for likelier outliers."""

    def __repr__(self) -> str:
        options = ", ".join(f"{key}={value!r}" for key, value in vars(self).items())
        return f"{self.name}({options})"


def build_detector(name: str, **options: Any) -> Detector:
    """The detector of that name.

    Raises:
        SFPError: unknown name or option; the message offers the closest one.
    """
    detector = DETECTORS.get(name)
    DETECTORS.check_options(name, options)
    return detector(**options)


def list_detectors() -> list[str]:
    """Names of all detectors."""
    return DETECTORS.names()


def top_k_mask(scores: Tensor, k: int) -> Tensor:
    """Mask (B, N) of each row's k largest scores."""
    k = min(k, scores.shape[1])
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(
        1, scores.topk(k, dim=1).indices, True
    )


def clustered_mask(clusters: Sequence[np.ndarray], min_size: int = 0) -> Tensor:
    """Mask (B, N) of tokens in no cluster (negative label), or in one of fewer than ``min_size``; none where no cluster is left."""
    masks = []
    for labels in clusters:
        size = np.bincount(labels[labels >= 0], minlength=1)
        outliers = (labels < 0) | (size[np.maximum(labels, 0)] < min_size)
        masks.append(torch.from_numpy(outliers & ~outliers.all()))
    return torch.stack(masks)
