"""Draw the same scenes as several methods see them: the picture of the README.

python tools/draw_comparison.py docs/pictures/toyland.png --scenes 10 15 12
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from sfp import Segmenter
from sfp.datasets import toyland

COLUMNS = {
    "CLIP": ("CLIP", {}),
    "SFP": ("SFP", {}),
    "SFP-release": ("SFP-release", {}),
    "SC-CLIP": ("SC-CLIP", {}),
    "ProxyCLIP, colours": ("ProxyCLIP", dict(proxy="colour")),
    "CLIPSeg": ("CLIPSeg", dict(attention_layer=10)),
}
_HEIGHT, _GAP, _TITLE = 150, 8, 26


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
        rows.append([scene.image, *(palette[labels] for labels in maps), palette[scene.labels]])
    save_grid(rows, ["image", *COLUMNS, "truth"], args.out)
    photo = args.out.with_name("scene.jpg")  # the picture that the README's command segments
    Image.fromarray(scenes[0].image).save(photo, quality=95)
    print(f"-> {args.out}, {photo}")


def save_grid(rows: list[list[np.ndarray]], titles: list[str], out: Path) -> None:
    """Rows of pictures under column titles, and the legend below."""
    sized = [[Image.fromarray(p).resize((round(p.shape[1] * _HEIGHT / p.shape[0]), _HEIGHT)) for p in row] for row in rows]
    widths = [max(row[column].width for row in sized) + _GAP for column in range(len(titles))]
    legend_rows = -(-len(toyland.CLASSES) * 110 // sum(widths))
    sheet = Image.new("RGB", (sum(widths) + _GAP, _TITLE + len(rows) * (_HEIGHT + _GAP) + legend_rows * 24 + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        x = _GAP + sum(widths[:column])
        draw.text((x + (widths[column] - _GAP) / 2, _TITLE / 2), title, fill="black", anchor="mm", font_size=15)
        for number, row in enumerate(sized):
            sheet.paste(row[column], (x + (widths[column] - _GAP - row[column].width) // 2, _TITLE + number * (_HEIGHT + _GAP)))
    per_row = -(-len(toyland.CLASSES) // legend_rows)
    for i, (name, colour) in enumerate(zip(toyland.CLASSES, toyland.PALETTE, strict=True)):
        x, y = _GAP + (i % per_row) * (sheet.width - _GAP) // per_row, _TITLE + len(rows) * (_HEIGHT + _GAP) + (i // per_row) * 24
        draw.rectangle((x, y + 3, x + 16, y + 19), fill=colour, outline="black")
        draw.text((x + 22, y + 11), name, fill="black", anchor="lm", font_size=14)
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out)


if __name__ == "__main__":
    main()
