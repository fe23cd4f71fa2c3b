"""The frozen CLIP: loading, image trunk with layer hooks, text bank, prompts. Knows nothing of methods."""

from sfp.clip.loading import load_clip
from sfp.clip.trunk import Attention, Block, Hook, ImageTrunk, LayerState

__all__ = ["Attention", "Block", "Hook", "ImageTrunk", "LayerState", "load_clip"]
