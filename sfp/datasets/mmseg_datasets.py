"""Dataset classes for mmsegmentation that it does not bring itself."""

from __future__ import annotations

import os
from typing import Any

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from sfp.datasets import toyland


@DATASETS.register_module()
class PascalVOC20Dataset(BaseSegDataset):
    """PASCAL VOC 2012 without background: label 0 is ignored, the other twenty shift down by one."""

    METAINFO = dict(
        classes=(
            "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse",
            "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
        ),
        palette=[
            [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128], [0, 128, 128], [128, 128, 128], [64, 0, 0], [192, 0, 0],
            [64, 128, 0], [192, 128, 0], [64, 0, 128], [192, 0, 128], [64, 128, 128], [192, 128, 128], [0, 64, 0], [128, 64, 0],
            [0, 192, 0], [128, 192, 0], [0, 64, 128],
        ],
    )  # fmt: skip

    def __init__(self, img_suffix: str = ".jpg", seg_map_suffix: str = ".png", reduce_zero_label: bool = True, **kwargs: Any):
        super().__init__(img_suffix=img_suffix, seg_map_suffix=seg_map_suffix, reduce_zero_label=reduce_zero_label, **kwargs)


@DATASETS.register_module()
class ToylandDataset(BaseSegDataset):
    """The built-in Toyland scenes, drawn into ``data_root`` when they are not there yet.

    Args:
        data_root: folder in VOC layout.
        split: "val", or "tune" for the scenes that chose the shipped checkpoint.
        scenes: how many of them.
    """

    METAINFO = dict(classes=toyland.CLASSES, palette=[list(colour) for colour in toyland.PALETTE])

    def __init__(self, data_root: str, split: str = "val", scenes: int = toyland.VAL_SCENES, **kwargs: Any):
        listing = toyland.write_split(data_root, split, scenes)
        super().__init__(
            data_root=data_root,
            data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClass"),
            ann_file=os.path.relpath(listing, data_root),
            img_suffix=".jpg",
            seg_map_suffix=".png",
            reduce_zero_label=False,
            **kwargs,
        )
