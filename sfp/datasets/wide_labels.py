"""Labels of more than eight bits, which mmseg's ``LoadAnnotations`` would fold into 256 classes."""

from __future__ import annotations

import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS
from PIL import Image

from sfp.errors import SFPError


@TRANSFORMS.register_module()
class LoadWideLabels(BaseTransform):
    """Load a label map of 8 or 16 bits, TIFF or PNG, in place of ``LoadAnnotations``.

    255 is a class like others here; ignored pixels hold ``ignore_index``, which the dataset and the
    evaluator need too. With the dataset's ``reduce_zero_label`` label 0 becomes ignored and the
    others shift down by one. Adds ``gt_seg_map``, (H, W) int32.
    """

    def __init__(self, ignore_index: int = 65535):
        self.ignore_index = ignore_index

    def transform(self, results: dict) -> dict:
        """Load ``results["seg_map_path"]``.

        Raises:
            SFPError: the file isn't one channel of whole numbers, or the dataset has a
                ``label_map``.
        """
        path = results["seg_map_path"]
        with Image.open(path) as image:
            labels = np.asarray(image)
        if labels.ndim != 2 or labels.dtype.kind not in "iu":
            raise SFPError(
                f"The label map {path} has shape {labels.shape} and type {labels.dtype}; it must "
                "be one channel of 8 or 16 bits, a class number per pixel."
            )
        if results.get("label_map") is not None:
            raise SFPError(
                f"LoadWideLabels can't map the labels of {path} to other classes; leave the "
                "dataset's metainfo.classes out."
            )
        labels = labels.astype(np.int32)
        if results.get("reduce_zero_label"):
            ignored = (labels == 0) | (labels == self.ignore_index)
            labels = np.where(ignored, self.ignore_index, labels - 1)
        results["gt_seg_map"] = labels
        results["seg_fields"].append("gt_seg_map")
        return results
