"""What each layer of CLIP does with a picture, and figures of it."""

from sfp.inspection.inspection import Inspection, inspect_image

__all__ = ["Inspection", "inspect_image"]
