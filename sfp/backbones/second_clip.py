"""A second CLIP, for methods that ask another one than that whose patches they take."""

from __future__ import annotations

from torch import Tensor

from sfp.backbones._backbone import Backbone
from sfp.clip.clip import FrozenCLIP
from sfp.clip.loading import load_clip


class SecondCLIP(Backbone):
    """A frozen CLIP beside the method's own, part of a run's provenance.

    Args:
        clip: the second one.

    Attributes:
        clip: the same.
    """

    def __init__(self, clip: FrozenCLIP):
        super().__init__(name=clip.name)
        self.clip, self.model = clip, clip.model  # a submodule, so that .to(device) moves it
        self.heads = clip.trunk.heads

    @classmethod
    def load(cls, model: str, pretrained: str, beside: FrozenCLIP) -> SecondCLIP:
        """By name and weights as ``load_clip`` takes them, on the device and in the precision of
        the CLIP beside it.
        """
        return cls(load_clip(model, pretrained, device=beside.device, precision=beside.precision))

    @property
    def fingerprint(self) -> str:
        return self.clip.fingerprint

    def encode(self, windows: Tensor) -> Tensor:
        """Patches of the last block in the joint space, of windows normalised for this CLIP."""
        trunk = self.clip.trunk
        grid = trunk.grid_of(*windows.shape[-2:])
        patches = trunk.readout(trunk.run(windows)[:, trunk.rows(grid)])
        return patches.mT.unflatten(2, grid)
