"""SFP: training-free open-vocabulary segmentation with a frozen CLIP.

    import sfp
    result = sfp.Segmenter("SFP")("photo.jpg", ["cat", "sofa", "window"])

Importing it also makes ``SFPSegmentor`` and the datasets known to mmsegmentation, where that is
installed.
"""

import importlib
from typing import Any

from sfp.errors import SFPError
from sfp.plugin import register_with_mmseg

__version__ = "0.1.0"
_PLACES = {
    "Inspection": "sfp.inspection",
    "Segmentation": "sfp.result",
    "Segmenter": "sfp.api",
    "build_detector": "sfp.outliers",
    "build_method": "sfp.methods",
    "list_detectors": "sfp.outliers",
    "list_methods": "sfp.methods",
    "list_models": "sfp.clip.models",
    "list_refiners": "sfp.refiners",
    "load_clip": "sfp.clip",
}
__all__ = ["SFPError", *_PLACES]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch and open_clip take seconds."""
    if name not in _PLACES:
        raise AttributeError(f"module 'sfp' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])


register_with_mmseg()
