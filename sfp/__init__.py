"""SFP: training-free open-vocabulary segmentation with a frozen CLIP.

    import sfp
    result = sfp.Segmenter("SFP")("photo.jpg", ["cat", "sofa", "window"])

Importing it also makes ``SFPSegmentor`` and the datasets known to mmsegmentation, where that is installed.
"""

from sfp.api import Segmenter
from sfp.clip import load_clip
from sfp.errors import SFPError
from sfp.methods import build_method, list_methods
from sfp.outliers import build_detector, list_detectors
from sfp.plugin import register_with_mmseg
from sfp.result import Segmentation

__version__ = "0.1.0"
__all__ = [
    "SFPError", "Segmentation", "Segmenter", "build_detector", "build_method", "list_detectors", "list_methods", "load_clip",
]  # fmt: skip

register_with_mmseg()
