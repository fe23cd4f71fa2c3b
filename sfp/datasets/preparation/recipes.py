"""What each dataset's preparation consists of; the longer ones have a file of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sfp.datasets.layouts import CITYSCAPES_TRAIN_IDS, COCO_IDS, COCO_THINGS, Layout
from sfp.datasets.preparation import ade_full, context, context459, download
from sfp.datasets.preparation.sources import Sources
from sfp.datasets.preparation.steps import Plan, link_file, map_labels, plan_pairs, read_list

# new labels of the ids 0 to 255, -1 for ids that there aren't
CITYSCAPES_TABLE = tuple(
    CITYSCAPES_TRAIN_IDS.index(i) if i in CITYSCAPES_TRAIN_IDS else 255 if i < 34 else -1
    for i in range(256)
)
STUFF_TABLE = tuple(
    COCO_IDS.index(i) if i in COCO_IDS else 255 if i == 255 else -1 for i in range(256)
)
OBJECT_TABLE = tuple(  # things from 1 on; stuff and what is unlabelled is background, 0
    COCO_THINGS.index(i) + 1 if i in COCO_THINGS else 0 if i in COCO_IDS or i == 255 else -1
    for i in range(256)
)


@dataclass(frozen=True)
class Recipe:
    """How a dataset is made from what its owners ship.

    Attributes:
        plan: from the sources and the dataset's folder to the steps; it reads, and writes nothing.
        needed: patterns of the archives' members that ``plan`` looks for.
        obtain: what the owners ship and where, as a sentence's end after "needs".
        archives: what may be fetched without registration.
    """

    plan: Callable[[Sources, Path, Layout], Plan]
    needed: tuple[str, ...]
    obtain: str
    archives: tuple[download.Archive, ...] = ()


def _plan_voc(sources: Sources, root: Path, layout: Layout) -> Plan:
    """The archive already has mmsegmentation's layout: images and labels are linked."""
    folder = "VOCdevkit/VOC2012"
    images = sources.folder("*.jpg", f"{folder}/JPEGImages")
    labels = sources.folder("*.png", f"{folder}/SegmentationClass")
    names = read_list(sources.folder("val.txt", f"{folder}/ImageSets/Segmentation") / "val.txt")
    return plan_pairs(layout, root, names, (images, ".jpg"), (labels, ".png"), link_file)


def _plan_ade20k(sources: Sources, root: Path, layout: Layout) -> Plan:
    """As VOC, without a list."""
    images = sources.folder("*.jpg", "ADEChallengeData2016/images/validation"), ".jpg"
    labels = sources.folder("*.png", "ADEChallengeData2016/annotations/validation"), ".png"
    names = {*_names(*images, "*"), *_names(*labels, "*")}
    return plan_pairs(layout, root, sorted(names), images, labels, link_file)


def _plan_cityscapes(sources: Sources, root: Path, layout: Layout) -> Plan:
    """The owners' labelIds to the 19 trainIds, everything else 255."""
    suffix = "_gtFine_labelIds.png"
    images = sources.folder(f"*/*{layout.image_suffix}", "leftImg8bit/val"), layout.image_suffix
    labels = sources.folder(f"*/*{suffix}", "gtFine/val"), suffix
    names = sorted(_names(*images, "*/*"))
    return plan_pairs(layout, root, names, images, labels, map_labels, CITYSCAPES_TABLE, "labelIds")


def _plan_coco(table: tuple[int, ...]) -> Callable[[Sources, Path, Layout], Plan]:
    """val2017 with the ``stuffthingmaps``: ids from 0 to 181 with gaps, 255 unlabelled."""
    places = ("stuffthingmaps", "stuffthingmaps_trainval2017", "annotations")

    def plan(sources: Sources, root: Path, layout: Layout) -> Plan:
        images = sources.folder("*.jpg", "images/val2017"), ".jpg"
        labels = sources.folder("*.png", *(f"{place}/val2017" for place in places)), ".png"
        # beside the maps of an earlier preparation lie its labels, <number>_labelTrainIds.png
        names = {*_names(*images, "*"), *filter(str.isdecimal, _names(*labels, "*"))}
        return plan_pairs(
            layout, root, sorted(names), images, labels, map_labels, table, "stuffthingmaps' ids"
        )

    return plan


def _names(folder: Path, suffix: str, pattern: str) -> Iterator[str]:
    """The images' names in a folder, without those that the system hides."""
    for path in folder.glob(f"{pattern}{suffix}"):
        if not path.name.startswith("."):
            yield str(path.relative_to(folder)).removesuffix(suffix)


_VOC = Recipe(
    _plan_voc,
    ("*/JPEGImages/*.jpg", "*/SegmentationClass/*.png", "*/ImageSets/Segmentation/val.txt"),
    "VOCtrainval_11-May-2012.tar of PASCAL VOC, or the folder VOCdevkit/VOC2012 in it; --download "
    "fetches it",
    (download.VOC2012,),
)
_CONTEXT = Recipe(
    context.plan,
    ("*/JPEGImages/*.jpg", "*/trainval_merged.json"),
    "VOCtrainval_03-May-2010.tar of PASCAL VOC 2010 and trainval_merged.json of PASCAL in Detail, "
    "from their own pages",
)
_CONTEXT459 = Recipe(
    context459.plan,
    (
        "*/JPEGImages/*.jpg",
        "*.mat",
        "*/pascalcontext_val.txt",
        "*/ImageSets/SegmentationContext/val.txt",
        "*/trainval_merged.json",
    ),
    "VOCtrainval_03-May-2010.tar of PASCAL VOC 2010, PASCAL Context's trainval.tar.gz and a list "
    "of validation images (pascalcontext_val.txt or trainval_merged.json), from their own pages",
)
_COCO = (
    ("*/val2017/*.jpg", "*/val2017/*.png"),
    "val2017.zip of COCO and stuffthingmaps_trainval2017.zip of COCO-Stuff, or their folders; "
    "--download fetches them",
    (download.COCO_VAL2017, download.COCO_STUFF_MAPS),
)
_ADE20K = Recipe(
    _plan_ade20k,
    ("*/images/validation/*.jpg", "*/annotations/validation/*.png"),
    "ADEChallengeData2016.zip of MIT's scene parsing challenge, or its folder; --download fetches "
    "it",
    (download.ADE20K,),
)
_ADE_FULL = Recipe(
    ade_full.plan,
    ("*/images/ADE/validation/*.jpg", "*/images/ADE/validation/*_seg.png"),
    "ADE20K_2021_17_01 (zip or folder), the full ADE20K, after registration on the page of MIT's "
    "ADE20K",
)
_CITYSCAPES = Recipe(
    _plan_cityscapes,
    ("*/leftImg8bit/val/*.png", "*/gtFine/val/*_gtFine_labelIds.png"),
    "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip of Cityscapes, after registration on "
    "its page",
)
RECIPES: dict[str, Recipe] = {
    "voc20": _VOC,
    "voc21": _VOC,
    "context59": _CONTEXT,
    "context60": _CONTEXT,
    "context459": _CONTEXT459,
    "coco_stuff164k": Recipe(_plan_coco(STUFF_TABLE), *_COCO),
    "coco_object": Recipe(_plan_coco(OBJECT_TABLE), *_COCO),
    "ade20k": _ADE20K,
    "ade847": _ADE_FULL,
    "city_scapes": _CITYSCAPES,
}
