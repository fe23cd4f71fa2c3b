"""Second frozen models, which some methods use besides CLIP: timm's ViTs, SAM, plain colours."""

from sfp.backbones._backbone import Backbone
from sfp.backbones._loading import backbone_file, load_backbone
from sfp.backbones.sam import load_sam
from sfp.backbones.timm_vit import Positions

__all__ = ["Backbone", "Positions", "backbone_file", "load_backbone", "load_sam"]
