"""The frozen CLIP: loading, image trunk with layer hooks, text bank, prompts."""

from sfp.clip.installation import require_torchvision_pair

require_torchvision_pair()  # open_clip imports torchvision and would die of its own error

from sfp.clip.loading import load_clip  # noqa: E402
from sfp.clip.trunk import Attention, Block, Hook, ImageTrunk, LayerState, caching_hook  # noqa: E402

__all__ = ["Attention", "Block", "Hook", "ImageTrunk", "LayerState", "caching_hook", "load_clip"]
