"""PASCAL Context with all 459 classes: VOC 2010's images and the owners' ``trainval`` .mat's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.io

from sfp.datasets.layouts import Layout
from sfp.datasets.preparation.context import JSON, names_of, read_json
from sfp.datasets.preparation.sources import Sources
from sfp.datasets.preparation.steps import Plan, plan_pairs, read_list, write_labels
from sfp.errors import SFPError, refuse_want_of_memory


def plan(sources: Sources, root: Path, layout: Layout) -> Plan:
    images = sources.folder("*.jpg", "VOCdevkit/VOC2010/JPEGImages")
    maps = sources.folder("*.mat", "VOCdevkit/VOC2010/trainval")
    names = _validation_names(sources, root / layout.split)
    return plan_pairs(layout, root, names, (images, ".jpg"), (maps, ".mat"), convert_map)


def _validation_names(sources: Sources, prepared: Path) -> list[str]:
    """From the source's list, its json, or the list that the preparation of context60 wrote."""
    # VOC 2010 has another val.txt, in ImageSets/Segmentation, which is not meant
    for name in ("pascalcontext_val.txt", "ImageSets/SegmentationContext/val.txt"):
        path = sources.file(f"VOCdevkit/VOC2010/{name}")
        if path is not None:
            return read_list(path)
    path = sources.file(JSON)
    if path is not None:
        return names_of(read_json(path), "val")
    if prepared.is_file():
        return read_list(prepared)
    raise SFPError(
        f"There is no list of validation images in {sources}; add --source with "
        "pascalcontext_val.txt or trainval_merged.json."
    )


def convert_map(target: Path, source: Path) -> None:
    """Write ``LabelMap``, 1 to 459, less 1 as a uint16 TIFF; 0, no label, becomes 65535.

    Raises:
        SFPError: an unreadable source, or ids outside 0 to 459.
    """
    try:
        ids = scipy.io.loadmat(source)["LabelMap"]
    except Exception as error:  # scipy raises many kinds for a broken file
        refuse_want_of_memory(error, f"reading {source}")
        raise SFPError(
            f"The source's {source} can't be read as a .mat with LabelMap ({error}); fetch it "
            "again."
        ) from error
    if ids.ndim != 2 or not ids.size or ids.min() < 0 or ids.max() > 459:
        raise SFPError(
            f"The source's {source} has no LabelMap of ids 0 to 459; take the 459-class labels of "
            "PASCAL Context."
        )
    write_labels(target, ids.astype(np.uint16) - np.uint16(1))
