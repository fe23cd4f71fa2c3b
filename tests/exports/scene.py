"""A small result for the tests of each form: two parts, a line that wraps, a background."""

from __future__ import annotations

import numpy as np

import sfp

NAMES = ("background", "boat", "sea: deep", "house")


def result(background: bool = True) -> sfp.Segmentation:
    """17 x 23 pixels; "house" doesn't occur."""
    labels = np.zeros((17, 23), np.int64)
    labels[:, 5:7] = 1  # from the top to the bottom: joined over the ends of columns
    labels[2:5, 10:20] = 2
    labels[5, 20] = 2  # touches by a corner
    labels[9] = 2  # from side to side, across the boat: two parts
    labels[9, 5:7] = 1
    labels[11:13, 8:15] = 2
    rng = np.random.default_rng(0)
    confidence = rng.random(labels.shape, np.float32)
    image = rng.integers(0, 256, (*labels.shape, 3), np.uint8)
    names = NAMES if background else ("sky", *NAMES[1:])
    return sfp.Segmentation(labels, names, None, image, {"method": "SFP"}, confidence)
