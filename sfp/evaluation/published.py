"""The numbers that papers print (``paper_results.csv``), and how they were measured."""

from __future__ import annotations

import csv
import functools
from pathlib import Path
from typing import Any

_FILE = Path(__file__).parent / "paper_results.csv"
# the authors' code loads CLIP in half precision
_NO_REFINEMENT = dict(pamr_iterations=0, refine=[], prompts=80, precision="fp16")
_SMALL = dict(window=224, stride=112, short_side={"cityscapes": 560, None: 336}, **_NO_REFINEMENT)
_LARGE = dict(window=448, stride=224, short_side={None: 448}, **_NO_REFINEMENT)
_WHOLE_VOC21 = {**_SMALL, "window": {"voc21": 0, None: 224}}
_WHOLE_VOC = {**_SMALL, "window": {"voc20": 0, "voc21": 0, None: 224}}


def _tlp(grid: int) -> list[dict[str, Any]]:
    return [dict(type="TLP", grid=grid)]


# where a paper's main numbers stand, and how it says that they were measured; by dataset, None for
# the others, where that differs
PAPERS = {
    "SFP": (("Tab1", "Tab4"), _SMALL),
    "SC-CLIP": (("Tab1", "Tab9"), _SMALL),
    "CLIPSeg": (("Tab2",), _LARGE),
    "RF-CLIP": (("list",), _WHOLE_VOC21),
    "ResCLIP": (("README",), _WHOLE_VOC),
    "PEARL": (("README",), {**_WHOLE_VOC, "refine": {"cityscapes": _tlp(224), None: _tlp(80)}}),
    "DIH-CLIP": (("README",), _SMALL),
    "FreeCP": (
        ("README",),
        {**_SMALL, "window": 384, "short_side": {"cityscapes": 560, None: 448}},
    ),
    "FLOSS": (("README",), _SMALL),
    "Trident": (("quoted",), dict(prompts=80, precision="fp16")),  # else its own settings
    "CASS": (("quoted",), _WHOLE_VOC21),
    "CaR": (("quoted",), dict(window=0, precision="fp16")),
}
# methods of those tables that have no file in sfp/methods, and why
NOT_RUN = {
    "GroupViT": "trained",
    "SegCLIP": "trained",
    "TCL": "trained",
    "SAM-CLIP": "trained",
    "ReCo": "not run: it retrieves pictures of each class from ImageNet's training set",
    "PnP-OVSS": "not run: BLIP in place of CLIP, and lists of each picture's classes by GPT-4o",
}
# open_clip's architectures as the papers call them
BACKBONES = {
    "ViT-B-16": ("ViT-B/16", "ViT-B (CLIP-B, OpenAI)"),
    "ViT-L-14": ("ViT-L/14", "ViT-L (CLIP-L, OpenAI)"),
    "ViT-B-32": ("ViT-B/32",),
}


@functools.cache
def published_rows() -> tuple[dict[str, str], ...]:
    """All numbers of the papers' tables."""
    with _FILE.open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


def find_published(
    method: str, backbone: str, dataset: str, paper: str | None = None
) -> tuple[float, str] | None:
    """mIoU that a paper prints and where.

    The method's own paper first, then those of ``PAPERS`` in their order.
    """
    order = [paper] if paper else sorted(PAPERS, key=lambda name: name != method)
    wanted = "SFP" if method == "SFP-release" else method
    for name in order:
        for row in published_rows():
            fits = (
                row["method"].removesuffix(" (Ours)") == wanted
                and row["dataset"] == dataset
                and row["metric"] == "mIoU"
            )
            if (
                fits
                and row["paper"] == name
                and row["table"] in PAPERS[name][0]
                and row["backbone"] in BACKBONES.get(backbone, ())
            ):
                return float(row["value"]), f"{name} {row['table']}"
    return None
