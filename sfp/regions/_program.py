"""What every program that makes masks is."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import field, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sfp.backbones import backbone_file
from sfp.clip.clip import FrozenCLIP, weights_sha256
from sfp.regions.regions import Regions
from sfp.registry import Registered, Registry

PROGRAMS = Registry("mask program", "sfp.regions")


class MaskProgram(Registered, ABC):
    """Base class: pixels in, masks out. A new program is one file here that registers its class.

    Annotated attributes of the class body are its options.

    Args:
        clip: on whose device it runs, and in whose precision unless it says otherwise.

    Attributes:
        network: its frozen model, an ``nn.Module``; set in ``__post_init__``.
        version: to be raised where its code begins to make other masks, so that kept ones are made
            anew.
        of_speed: options that change no mask.
        keeps: whether what it makes may be kept on disk, under the model's fingerprint.
    """

    clip: FrozenCLIP = field(kw_only=False)

    version: ClassVar[int] = 1
    of_speed: ClassVar[frozenset[str]] = frozenset()
    keeps: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, pixels: np.ndarray) -> Regions:
        """Masks of a picture (H, W, 3) uint8 RGB, at its size."""

    @property
    def precision(self) -> str:
        return self.clip.precision

    @property
    def settings(self) -> str:
        """What its masks depend on besides the pixels, as JSON."""
        network = self.network
        known = {
            "program": self.name,
            "version": self.version,
            "network": getattr(network, "fingerprint", None) or weights_sha256(network),
            "precision": self.precision,
        }
        options = {own.name for own in fields(self) if own.kw_only} - self.of_speed
        known |= {name: getattr(self, name) for name in options if not name.endswith("_weights")}
        return json.dumps(known, sort_keys=True, default=repr)

    @classmethod
    def weight_files(cls, options: Mapping[str, Any]) -> dict[str, Path]:
        """The files of weights on this machine that options mean, by the option."""
        models = [key for key in options if f"{key}_weights" in options]
        files = {key: backbone_file(options[key], options[f"{key}_weights"]) for key in models}
        return {key: file for key, file in files.items() if file}
