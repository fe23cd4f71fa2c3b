"""COCO's JSON of annotated pictures, which most tools read: pycocotools, CVAT, FiftyOne ..."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from sfp.exports.instances import Annotated, Instance


def coco_dataset(pictures: Iterable[Annotated], protocol: dict[str, Any]) -> dict[str, Any]:
    """Pictures of one list of names in COCO's layout, ready for JSON.

    Ids count from 1. An annotation's ``segmentation`` is a compressed run-length mask, {"size": [H,
    W], "counts": text}; ``area`` is in pixels, ``bbox`` is [x, y, width, height], ``score`` the
    mean probability of its pixels, where it is known. A background is no category.

    Args:
        protocol: what made the labels; stands in ``info``.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    categories: list[dict[str, Any]] = []
    for picture in pictures:
        height, width = picture.size
        number = len(images) + 1
        image = {"id": number, "file_name": picture.file_name, "width": width, "height": height}
        images.append(image)
        categories = categories or [
            {"id": picture.category(label), "name": name, "supercategory": ""}
            for label, name in enumerate(picture.names)
            if picture.category(label)
        ]
        for instance in picture.instances:
            annotation = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": picture.category(instance.label),
                "segmentation": run_lengths(instance, picture.size),
                "area": instance.area,
                "bbox": list(instance.box),
                "iscrowd": 0,
            }
            if instance.score is not None:
                annotation["score"] = instance.score
            annotations.append(annotation)
    return {
        "info": {"description": "made by sfp", "protocol": protocol},
        "licenses": [],
        "images": images,
        "categories": categories,
        "annotations": annotations,
    }


def run_lengths(instance: Instance, size: tuple[int, int]) -> dict[str, Any]:
    """COCO's compressed run-length mask of an instance in a picture of that (H, W)."""
    height, width = size
    edges = np.r_[0, instance.runs(size, "F").ravel(), height * width]
    runs = {"size": [height, width], "counts": np.diff(edges).tolist()}
    packed = coco_mask.frPyObjects(runs, height, width)
    return {"size": [height, width], "counts": packed["counts"].decode()}
