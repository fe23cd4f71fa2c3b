"""Outlier detectors, one file each, and the repair of what they find."""

from sfp.outliers._detector import (
    DETECTORS,
    Detector,
    build_detector,
    list_detectors,
    require_class_token,
    top_k_mask,
)
from sfp.outliers.purify import Purifier
from sfp.outliers.repair import repair

__all__ = [
    "DETECTORS",
    "Detector",
    "Purifier",
    "build_detector",
    "list_detectors",
    "repair",
    "require_class_token",
    "top_k_mask",
]
