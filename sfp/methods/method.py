"""What every method is: a callable from windows to dense features in the joint image-text space."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from sfp.clip.clip import FrozenCLIP
from sfp.clip.trunk import Hook
from sfp.errors import SFPError
from sfp.outliers import DETECTORS, Purifier, build_detector
from sfp.registry import Registry

METHODS = Registry("method", "sfp.methods")


class Method(ABC):
    """Base class. A new method is one file in this folder: a class that registers itself and defines ``tokens``.

    Every method takes the options of purification, and those of the chosen detector by their own names.

    Args:
        clip: the frozen CLIP.
        purify: whether outliers are repaired; as the method was published, if None.
        pm: the detector, by name; the method's own, if None.
        purify_layers: 1-based blocks after which purification acts; the method's own, if None.
        repair_empty, repair_divisor: ``empty`` and ``divisor`` of ``repair``.
        repair_point: "block", or "attention" for the stream before the MLP.
        detector_options: further options of the detector.

    Attributes:
        own_purify, own_pm: what the method was published with.
        own_detector_options: for each detector by name, the options that the method was published with.
    """

    name: ClassVar[str]
    own_purify: ClassVar[bool] = False
    own_pm: ClassVar[str] = "SOM"
    own_detector_options: ClassVar[dict[str, dict[str, Any]]] = {}

    def __init__(
        self,
        clip: FrozenCLIP,
        *,
        purify: bool | None = None,
        pm: str | None = None,
        purify_layers: Collection[int] | int | None = None,
        repair_empty: str = "keep",
        repair_divisor: str = "valid",
        repair_point: str = "block",
        detector_options: dict[str, Any] | None = None,
    ):
        self.clip, self.trunk = clip, clip.trunk
        pm = self.own_pm if pm is None else pm
        DETECTORS.get(pm)  # a wrong name is an error also where purification is off
        self.purifier = None
        if self.own_purify if purify is None else purify:
            options = {**self.own_detector_options.get(pm, {}), **(detector_options or {})}
            layers = self.own_purify_layers() if purify_layers is None else self.check_layers("purify_layers", purify_layers)
            detector = build_detector(pm, **options)
            self.purifier = Purifier(detector, layers, empty=repair_empty, divisor=repair_divisor, point=repair_point)

    def own_purify_layers(self) -> Sequence[int]:
        """Layers at which purification acts unless it is told: 1..L-1."""
        return range(1, self.trunk.layers)

    def check_layers(self, option: str, layers: Collection[int] | int) -> tuple[int, ...]:
        """Layers of an option as a tuple.

        Raises:
            SFPError: a layer is not in 1..L-1.
        """
        layers = [layers] if isinstance(layers, int) else list(layers)
        for layer in layers:
            if not isinstance(layer, int) or not 1 <= layer < self.trunk.layers:
                raise SFPError(f"{option} of {self.name} names layer {layer!r}; give layers from 1 to {self.trunk.layers - 1}.")
        return tuple(layers)

    def hooks(self, *more: Hook) -> list[Hook]:
        """The purifying hook, if purification is on, and then further ones, which see repaired tokens."""
        return [*([self.purifier.hook] if self.purifier else []), *more]

    @abstractmethod
    def tokens(self, windows: Tensor) -> Tensor:
        """Y, the last layer's patch tokens (B, N, C) before LN_post and projection."""

    def features(self, windows: Tensor) -> Tensor:
        """Y read out, (B, N, D)."""
        return self.trunk.readout(self.tokens(windows))

    @torch.inference_mode()
    def __call__(self, windows: Tensor) -> Tensor:
        """Dense features (B, h, w, D), projected, not normalised, of normalised windows (B, 3, H, W) float.

        Raises:
            SFPError: windows of another shape, or smaller than a patch.
        """
        features = self.features(windows.to(self.clip.device))
        return features.unflatten(1, self.trunk.grid_of(*windows.shape[-2:]))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.clip!r}, purifier={self.purifier.detector if self.purifier else None})"


def build_method(name: str, clip: FrozenCLIP, **options: Any) -> Method:
    """The method of that name on a frozen CLIP: ``method(windows)`` gives features (B, h, w, D).

    Options are the method's own, those of every method (``purify``, ``pm``, ``purify_layers`` ...) and those of its
    detector (``max_outliers``, ``cls_factor``, ``k`` ...).

    Raises:
        SFPError: unknown method, detector or option; the message offers the closest name.
    """
    method = METHODS.get(name)
    own = METHODS.options(name)
    pm = options.get("pm") or method.own_pm
    detector_options = dict(options.pop("detector_options", None) or {})
    for option in [key for key in options if key not in own and key in DETECTORS.options(pm)]:
        detector_options[option] = options.pop(option)
    METHODS.check_options(name, options)
    DETECTORS.check_options(pm, detector_options)
    return method(clip, detector_options=detector_options, **options)


def list_methods() -> list[str]:
    """Names of all methods."""
    return METHODS.names()
