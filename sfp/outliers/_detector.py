"""What every detector is: a callable from a layer's state to an outlier mask and its scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sfp.clip.trunk import Attention, LayerState
from sfp.errors import SFPError
from sfp.registry import Registered, Registry

DETECTORS = Registry("detector", "sfp.outliers")


class Detector(Registered, ABC):
    """Base class. A new detector is one file in this folder that registers its class in
    ``DETECTORS``.

    Annotated attributes of the class body are its options. Every statistic is per image; the class
    token is never an outlier.

    Attributes:
        attention: how much of the layer's attention weights it reads.
        needs_class_token: whether it reads those of the class token, so that towers without one are
            refused.
        on_host: whether it reads numbers on the CPU, which must be finite, so that the host waits.
    """

    attention: ClassVar[Attention] = Attention.NONE
    needs_class_token: ClassVar[bool] = False
    on_host: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, state: LayerState) -> tuple[Tensor, Tensor]:
        """Outlier mask (B, N) bool and scores (B, N) float32, larger for likelier outliers."""


def build_detector(name: str, **options: Any) -> Detector:
    """The detector of that name.

    Raises:
        SFPError: unknown name or option; the message offers the closest one.

    >>> build_detector("SOM", max_outliers=10)
    SOM(cls_factor=1.0, max_outliers=10, heads='mean', direction='row')
    """
    return DETECTORS.build(name, **options)


def require_class_token(detector: Detector, class_token: bool, model: str) -> None:
    """Raises SFPError where a detector reads a class token that a model's tower does not have."""
    if detector.needs_class_token and not class_token:
        free = [name for name in DETECTORS.names() if not DETECTORS.get(name).needs_class_token]
        raise SFPError(
            f"The detector {detector.name} reads the class token, and the image tower of {model}"
            f" has none; give one of {', '.join(free)}."
        )


def list_detectors() -> list[str]:
    """Names of all detectors.

    >>> "SOM" in list_detectors()
    True
    """
    return DETECTORS.names()


def top_k_mask(scores: Tensor, k: int) -> Tensor:
    """Mask (B, N) of each row's k largest scores."""
    places = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, places, True)


def above_quantile(scores: Tensor, contamination: float) -> Tensor:
    """Mask (B, N) of scores strictly above each row's (1 - contamination) quantile."""
    return scores > torch.quantile(scores, 1 - contamination, dim=1, keepdim=True)


def clustered_mask(clusters: Sequence[np.ndarray], min_size: int = 0) -> Tensor:
    """Mask (B, N) of tokens in no cluster (negative label), or in one of fewer than ``min_size``.

    Where no cluster is left nothing is an outlier.
    """
    masks = []
    for labels in clusters:
        size = np.bincount(labels[labels >= 0], minlength=1)
        outliers = (labels < 0) | (size[np.maximum(labels, 0)] < min_size)
        masks.append(torch.from_numpy(outliers & ~outliers.all()))
    return torch.stack(masks)
