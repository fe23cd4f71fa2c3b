"""What each layer of CLIP does with a picture, and figures of it."""

from sfp.drawing import png_bytes
from sfp.inspection.figures import attention_figure
from sfp.inspection.inspection import Inspection, inspect_image

__all__ = ["Inspection", "inspect_image"]

# how a notebook shows it; figures.py stands on inspection.py, which knows of no drawing
Inspection._repr_png_ = lambda self: png_bytes(attention_figure(self))
