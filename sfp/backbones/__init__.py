"""Second frozen models, which some methods use besides CLIP: timm's ViTs, plain colours."""

from sfp.backbones._backbone import Backbone
from sfp.backbones._loading import load_backbone

__all__ = ["Backbone", "load_backbone"]
