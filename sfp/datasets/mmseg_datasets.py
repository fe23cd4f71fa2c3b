"""Dataset classes for mmsegmentation that it does not bring itself."""

from __future__ import annotations

import os
from typing import Any

from mmseg.datasets import (
    BaseSegDataset,
    COCOStuffDataset,
    PascalContextDataset,
    PascalContextDataset59,
    PascalVOCDataset,
)
from mmseg.registry import DATASETS

from sfp.datasets import toyland
from sfp.errors import SFPError
from sfp.options import check_type
from sfp.pipeline import Vocabulary

_SUFFIXES = dict(img_suffix=".jpg", seg_map_suffix=".png")


@DATASETS.register_module()
class PascalVOC20Dataset(BaseSegDataset):
    """PASCAL VOC 2012 without background: label 0 is ignored, the others shift down by one."""

    METAINFO = {key: values[1:] for key, values in PascalVOCDataset.METAINFO.items()}

    def __init__(self, reduce_zero_label: bool = True, **kwargs: Any):
        super().__init__(reduce_zero_label=reduce_zero_label, **{**_SUFFIXES, **kwargs})


@DATASETS.register_module()
class PascalContext59Dataset(PascalContextDataset59):
    """PASCAL Context without background, by the name that the papers' configs use."""


@DATASETS.register_module()
class PascalContext60Dataset(PascalContextDataset):
    """PASCAL Context with background as class 0, by the name that the papers' configs use."""


@DATASETS.register_module()
class COCOObjectDataset(BaseSegDataset):
    """COCO's 80 things as classes 1 to 80; all other pixels are class 0, none is ignored."""

    METAINFO = dict(
        classes=("background", *COCOStuffDataset.METAINFO["classes"][:80]),
        palette=[[0, 0, 0], *COCOStuffDataset.METAINFO["palette"][:80]],
    )

    def __init__(self, seg_map_suffix: str = "_instanceTrainIds.png", **kwargs: Any):
        super().__init__(**{**_SUFFIXES, "seg_map_suffix": seg_map_suffix, **kwargs})


class _NamedByFile(BaseSegDataset):
    """A large vocabulary: classes are a file's lines, labels have 16 bits.

    Args:
        name_path: one class per line, commas belonging to the name.

    Raises:
        SFPError: no such file, or not ``COUNT`` lines.
    """

    COUNT: int

    def __init__(self, name_path: str | os.PathLike, **kwargs: Any):
        names = Vocabulary.from_file(name_path, "\n").names
        if len(names) != self.COUNT:
            raise SFPError(
                f"The names file {name_path} has {len(names)} lines, but {type(self).__name__} has "
                f"{self.COUNT} classes; set test_dataloader.dataset.name_path to a file with one "
                "line per class, in their order."
            )
        defaults = dict(img_suffix=".jpg", seg_map_suffix=".tif", ignore_index=65535)
        super().__init__(metainfo=dict(classes=names), **{**defaults, **kwargs})


@DATASETS.register_module()
class ADE847Dataset(_NamedByFile):
    """ADE20K's full annotation with its 847 most frequent classes, numbered from 0."""

    COUNT = 847


@DATASETS.register_module()
class PascalContext459Dataset(_NamedByFile):
    """PASCAL Context with all its 459 classes, numbered from 0."""

    COUNT = 459


@DATASETS.register_module()
class ToylandDataset(BaseSegDataset):
    """The built-in Toyland scenes, drawn into ``data_root`` when they are not there yet.

    Args:
        data_root: folder in VOC layout.
        split: "val", or "tune" for the scenes that chose the shipped checkpoint.
        scenes: how many of them.

    Raises:
        SFPError: no scene, another split, or a folder that can't be written.
    """

    METAINFO = dict(classes=toyland.CLASSES, palette=[list(colour) for colour in toyland.PALETTE])

    def __init__(
        self, data_root: str, split: str = "val", scenes: int = toyland.VAL_SCENES, **kwargs: Any
    ):
        check_type("scenes of ToylandDataset", scenes, int, toyland.VAL_SCENES)
        if scenes < 1 or split not in toyland.SPLITS:
            raise SFPError(
                f"ToylandDataset has scenes={scenes}, split={split!r}; give at least 1 scene and "
                f"one of the splits {', '.join(toyland.SPLITS)}."
            )
        # no list, since runs with other numbers of scenes share the folder
        self.names = toyland.write_scenes(data_root, split, scenes)
        super().__init__(
            data_root=data_root,
            data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClass"),
            **{**_SUFFIXES, **kwargs},
        )

    def load_data_list(self) -> list[dict[str, Any]]:
        images, labels = (self.data_prefix[key] for key in ("img_path", "seg_map_path"))
        return [
            dict(
                img_path=f"{images}/{name}{self.img_suffix}",
                seg_map_path=f"{labels}/{name}{self.seg_map_suffix}",
                label_map=self.label_map,
                reduce_zero_label=self.reduce_zero_label,
                seg_fields=[],
            )
            for name in self.names
        ]
