"""Draw the same scenes as several methods see them: the picture of the README.

python tools/draw_comparison.py docs/pictures/toyland.png --scenes 10 15 12
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from sfp import Segmenter
from sfp.datasets import toyland
from sfp.drawing import Panel, Sheet

COLUMNS = {
    "CLIP": ("CLIP", {}),
    "SFP": ("SFP", {}),
    "SFP-release": ("SFP-release", {}),
    "SC-CLIP": ("SC-CLIP", {}),
    "ProxyCLIP, colours": ("ProxyCLIP", dict(proxy="colour")),
    "CLIPSeg": ("CLIPSeg", dict(attention_layer=10)),
}
_HEIGHT = 150


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--scenes", type=int, nargs="+", default=[10, 15, 12], help="numbers of val scenes")
    args = parser.parse_args()
    scenes = [toyland.make_scene("val", number) for number in args.scenes]
    segmenters = {title: Segmenter(method, model="Toyland", device="cpu", **options) for title, (method, options) in COLUMNS.items()}
    palette = np.array(toyland.PALETTE, np.uint8)
    rows = []
    for scene in scenes:
        maps = [segmenter(scene.image, toyland.CLASSES).labels for segmenter in segmenters.values()]
        pictures = [scene.image, *(palette[labels] for labels in maps), palette[scene.labels]]
        rows.append([Panel(Image.fromarray(picture)) for picture in pictures])
    legend = list(zip(toyland.CLASSES, toyland.PALETTE, strict=True))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    Sheet(rows, ["image", *COLUMNS, "truth"], legend=legend, height=_HEIGHT).draw().save(args.out)
    photo = args.out.with_name("scene.jpg")  # the picture that the README's command segments
    Image.fromarray(scenes[0].image).save(photo, quality=95)
    print(f"-> {args.out}, {photo}")


if __name__ == "__main__":
    main()
