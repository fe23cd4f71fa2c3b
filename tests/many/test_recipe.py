"""What is said of a picture's result."""

from __future__ import annotations

import numpy as np

import sfp
from sfp.many.items import FileItem
from sfp.many.recipe import Asked, Recipe


def test_a_share_that_rounds_to_nothing(tmp_path):
    labels = np.zeros((100, 100), np.int64)
    labels[0, 0] = 1
    labels[50:] = 2
    names = ("sky", "sun", "sea")
    made = sfp.Segmentation(
        labels, names, None, np.zeros((100, 100, 3), np.uint8), {}, labels.astype(np.float32)
    )
    asked = Asked(Recipe(["SFP"], names, overlay=False), [], {})
    line = asked.write(tmp_path, "a", FileItem("a.jpg", "a.jpg", "/a.jpg", 1, 1), [made])
    assert "sea 50.0%, sky 50.0%, sun <0.1% -> " in line
