"""Label maps as they lie in their files, exactly: 8 or 16 bits, or refused."""

from __future__ import annotations

import os

import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS
from PIL import Image

from sfp.datasets.exact import turned_by, why_inexact
from sfp.errors import SFPError


def require_exact(label: str | os.PathLike, image: str | os.PathLike | None = None) -> None:
    """Raises SFPError where reading would change a file's labels, or turn its image alone.

    Args:
        label: the file of the labels.
        image: that of their image.
    """
    with Image.open(label) as opened:
        reason = why_inexact(opened)
    if reason is not None:
        raise SFPError(
            f"The label {label} {reason}; save it as PNG with 8 or 16 bits a pixel, the labels"
            " themselves."
        )
    if image is None:
        return
    with Image.open(image) as opened:
        orientation = turned_by(opened)
    if orientation is not None:
        raise SFPError(
            f"The image {image} {orientation}; save its pixels as the labels lie, and delete the"
            " tag."
        )


@TRANSFORMS.register_module()
class LoadLabels(BaseTransform):
    """Load a label map of 8 or 16 bits, TIFF or PNG, in place of ``LoadAnnotations``.

    With the dataset's ``reduce_zero_label`` label 0 is not evaluated and the others shift down by
    one. Adds ``gt_seg_map``, (H, W) int32.

    Args:
        ignore_index: label of pixels that are not evaluated, which the dataset and the evaluator
            need too.
        ignored_in_file: whether files have it, too, where ``reduce_zero_label`` makes it of 0;
            where they should not, its pixels show that labels were reduced before.
    """

    def __init__(self, ignore_index: int = 255, ignored_in_file: bool = False):
        self.ignore_index, self.ignored_in_file = ignore_index, ignored_in_file

    def transform(self, results: dict) -> dict:
        """Load ``results["seg_map_path"]``.

        Raises:
            SFPError: the file doesn't hold labels exactly, its image is turned on reading, the
                dataset has a ``label_map``, or labels that are to be reduced were reduced before.
        """
        path = results["seg_map_path"]
        require_exact(path, results.get("img_path"))
        with Image.open(path) as image:
            labels = np.asarray(image).astype(np.int32)
        if results.get("label_map") is not None:
            raise SFPError(
                f"LoadLabels can't map the labels of {path} to other classes; leave the dataset's "
                "metainfo.classes out."
            )
        if results.get("reduce_zero_label"):
            ignored = labels == self.ignore_index
            if ignored.any() and not self.ignored_in_file:
                raise SFPError(
                    f"The label {path} has the value {self.ignore_index}, as if its labels were "
                    "reduced by one before; give the owners' labels, in which 0 is not evaluated, "
                    "or set LoadLabels' ignored_in_file=True if they have it."
                )
            labels = np.where(ignored | (labels == 0), self.ignore_index, labels - 1)
        results["gt_seg_map"] = labels
        results["seg_fields"].append("gt_seg_map")
        return results
