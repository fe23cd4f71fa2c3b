"""Small trees as the datasets' owners ship them, with the labels expected of preparation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.io
from conftest import ROOT
from PIL import Image

HEIGHT, WIDTH = 60, 80
IDS_847 = [
    int(word) for word in (ROOT / "sfp/datasets/preparation/ade847_ids.txt").read_text().split()
]
# trainIds by name of the 19 Cityscapes classes, beside their labelIds
CITY = {
    "road": (7, 0), "sidewalk": (8, 1), "building": (11, 2), "wall": (12, 3), "fence": (13, 4),
    "pole": (17, 5), "traffic light": (19, 6),
    "traffic sign": (20, 7), "vegetation": (21, 8), "terrain": (22, 9), "sky": (23, 10),
    "person": (24, 11), "rider": (25, 12),
    "car": (26, 13), "truck": (27, 14), "bus": (28, 15), "train": (31, 16),
    "motorcycle": (32, 17), "bicycle": (33, 18),
}  # fmt: skip
# as usually listed
CONTEXT = (
    0, 2, 259, 260, 415, 324, 9, 258, 144, 18, 19, 22, 23, 397, 25, 284, 158, 159, 416, 33, 162,
    420, 454, 295, 296, 427, 44, 45, 46, 308,
    59, 440, 445, 31, 232, 65, 354, 424, 68, 326, 72, 458, 34, 207, 80, 355, 85, 347, 220, 349,
    360, 98, 187, 104, 105, 366, 189, 368, 113,
    115,
)  # fmt: skip


@dataclass
class Shipped:
    """What owners ship: paths for --source, and for each image its file and expected labels."""

    sources: list[Path]
    images: dict[str, Path]
    labels: dict[str, np.ndarray]


def _photo(path: Path, rng: np.random.Generator, height: int = HEIGHT, width: int = WIDTH) -> None:
    """A smooth picture, so that JPEG changes it little."""
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / width * a + y / height * b + c) for a, b, c in rng.uniform(1, 5, (3, 3))]
    Image.fromarray((127 + 120 * np.stack(waves, -1)).astype(np.uint8)).save(path, quality=95)


def _patches(rng: np.random.Generator, ids, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A label map of 5 x 5 patches: the first id, the last, and random ones of the others."""
    ids = np.asarray(ids)
    grid = rng.choice(ids, (-(-height // 5), -(-width // 5)))
    grid[0, 0], grid[0, 1] = ids[0], ids[-1]
    return np.kron(grid, np.ones((5, 5), grid.dtype))[:height, :width]


def _save(path: Path, pixels: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels.astype(np.uint8), "P" if palette else None)
    if palette:
        image.putpalette(np.random.default_rng(1).integers(0, 256, 768, np.uint8).tolist())
    image.save(path)


def each_pixel(ids: np.ndarray, function) -> np.ndarray:
    return np.array([[function(int(value)) for value in row] for row in ids])


def voc(root: Path) -> Shipped:
    rng, folder, made = (
        np.random.default_rng(0),
        root / "VOCdevkit/VOC2012",
        Shipped([root / "VOCdevkit"], {}, {}),
    )
    names = ["2007_000033", "2007_000042", "2008_000001"]
    for name in [*names, "2007_999999"]:  # the last is not in val
        _photo(folder / f"JPEGImages/{name}.jpg", rng)
        labels = _patches(rng, [0, 255, *range(1, 20), 20])
        _save(folder / f"SegmentationClass/{name}.png", labels, palette=True)
        if name in names:
            made.images[name], made.labels[name] = folder / f"JPEGImages/{name}.jpg", labels
    (folder / "ImageSets/Segmentation").mkdir(parents=True)
    (folder / "ImageSets/Segmentation/val.txt").write_text("\n".join(names) + "\n")
    return made


def pack(mask: np.ndarray) -> str:
    """A mask's run lengths as COCO packs them."""
    flat = mask.T.ravel().tolist()
    runs, value = [0], 0
    for pixel in flat:
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    text = ""
    for place, run in enumerate(runs):
        number = run - runs[place - 2] if place > 2 else run
        while True:
            low, number = number & 31, number >> 5
            if (number == 0 and not low & 16) or (number == -1 and low & 16):
                text += chr(low + 48)
                break
            text += chr((low | 32) + 48)
    return text


def context(root: Path) -> Shipped:
    rng, folder, made = (
        np.random.default_rng(1),
        root / "VOCdevkit/VOC2010",
        Shipped([root], {}, {}),
    )
    images, annotations = [], []
    for number, phase in enumerate(["val", "train", "test", "val"]):
        name = f"2008_{number:06d}"
        _photo(folder / f"JPEGImages/{name}.jpg", rng)
        images.append(
            dict(
                image_id=2008000000 + number,
                file_name=f"{name}.jpg",
                height=HEIGHT,
                width=WIDTH,
                phase=phase,
            )
        )
        expected = [[0] * WIDTH for _ in range(HEIGHT)]
        for category in (2, 458, *rng.choice(CONTEXT, 9).tolist()):
            top, left = int(rng.integers(-10, 40)), int(rng.integers(-10, 60))
            mask = np.zeros((HEIGHT, WIDTH), int)
            for y in range(HEIGHT):
                for x in range(WIDTH):
                    if (y - top - 15) ** 2 + (x - left - 15) ** 2 < 200:
                        mask[y, x] = 1
                        expected[y][x] = sum(other < category for other in CONTEXT)
            annotations.append(
                dict(
                    id=len(annotations),
                    image_id=2008000000 + number,
                    category_id=category,
                    segmentation=dict(size=[HEIGHT, WIDTH], counts=pack(mask)),
                )
            )
        if phase == "val":
            made.images[name], made.labels[name] = (
                folder / f"JPEGImages/{name}.jpg",
                np.array(expected),
            )
    (root / "trainval_merged.json").write_text(
        json.dumps(
            dict(info={}, images=images, annos_segmentation=annotations, categories=[], parts=[])
        )
    )
    return made


def context459(root: Path) -> Shipped:
    rng, folder = np.random.default_rng(2), root / "VOCdevkit/VOC2010"
    made = Shipped([root / "VOCdevkit", root / "trainval", root / "pascalcontext_val.txt"], {}, {})
    (root / "trainval").mkdir(parents=True)
    for number in range(3):
        name = f"2008_{number:06d}"
        _photo(folder / f"JPEGImages/{name}.jpg", rng)
        ids = _patches(rng, [1, *range(460), 459]).astype(np.uint16)
        scipy.io.savemat(root / f"trainval/{name}.mat", {"LabelMap": ids}, do_compression=True)
        made.images[name], made.labels[name] = (
            folder / f"JPEGImages/{name}.jpg",
            each_pixel(ids, lambda i: (i - 1) % 65536),
        )
    (root / "pascalcontext_val.txt").write_text("".join(f"{name}\n" for name in made.images))
    return made


def coco(root: Path, things_only: bool) -> Shipped:
    """As the two archives unpack in one folder: val2017 with images, stuffthingmaps/val2017."""
    rng, made = (
        np.random.default_rng(3),
        Shipped([root / "val2017", root / "stuffthingmaps"], {}, {}),
    )
    unused = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}  # COCO's category ids, from 1
    categories = [c for c in range(1, 183) if c not in unused]
    new = {}
    for c in categories:
        stuff = c > 91
        new[c - 1] = (
            (0 if stuff else 1 + sum(other < c for other in categories))
            if things_only
            else sum(other < c for other in categories)
        )
    new[255] = 0 if things_only else 255
    for number in (139, 285, 632):
        name = f"{number:012d}"
        _photo(root / f"val2017/{name}.jpg", rng)
        ids = _patches(rng, [0, *new, 181])
        ids[:5, 10:15] = 89
        _save(root / f"stuffthingmaps/val2017/{name}.png", ids)
        made.images[name], made.labels[name] = (
            root / f"val2017/{name}.jpg",
            each_pixel(ids, new.get),
        )
    return made


def ade20k(root: Path) -> Shipped:
    rng, folder, made = (
        np.random.default_rng(4),
        root / "ADEChallengeData2016",
        Shipped([root / "ADEChallengeData2016"], {}, {}),
    )
    for number in range(1, 4):
        name = f"ADE_val_{number:08d}"
        _photo(folder / f"images/validation/{name}.jpg", rng)
        labels = _patches(rng, [0, *range(1, 150), 150])
        _save(folder / f"annotations/validation/{name}.png", labels)
        made.images[name], made.labels[name] = folder / f"images/validation/{name}.jpg", labels
    return made


def ade847(root: Path) -> Shipped:
    """The third image has a short side of over 512 pixels and is shrunk."""
    rng, made = np.random.default_rng(5), Shipped([root / "ADE20K_2021_17_01"], {}, {})
    for number, (scene, size) in enumerate(
        [
            ("urban/street", (60, 80)),
            ("home_or_hotel/bedroom", (80, 60)),
            ("urban/alley", (768, 612)),
        ],
        1,
    ):
        folder, name = (
            root / "ADE20K_2021_17_01/images/ADE/validation" / scene,
            f"ADE_val_{number:08d}",
        )
        _photo(folder / f"{name}.jpg", rng, *size)
        ids = _patches(rng, [IDS_847[0], 0, 1, 3000, *IDS_847[1:40], *IDS_847[-40:]], *size)
        pixels = np.stack(
            [ids // 256 * 10 + rng.integers(0, 10, size), ids % 256, rng.integers(0, 256, size)], -1
        )
        _save(folder / f"{name}_seg.png", pixels)
        _save(folder / f"{name}_parts_1.png", pixels)
        height, width = size
        if width > 512:
            height, width = round(height * 512 / width), 512
        known = {value: place for place, value in enumerate(IDS_847)}
        made.labels[name] = np.array(
            [
                [
                    known.get(int(ids[y * size[0] // height, x * size[1] // width]), 65535)
                    for x in range(width)
                ]
                for y in range(height)
            ]
        )
        made.images[name] = folder / f"{name}.jpg"
    return made


def city_scapes(root: Path) -> Shipped:
    rng, made = np.random.default_rng(6), Shipped([root], {}, {})
    new = dict(CITY.values())
    for city, number in (("frankfurt", 294), ("frankfurt", 576), ("lindau", 0)):
        name = f"{city}/{city}_000000_{number:06d}"
        image = root / f"leftImg8bit/val/{name}_leftImg8bit.png"
        _photo(image, rng)
        ids = _patches(rng, [7, *range(34), 33])
        _save(root / f"gtFine/val/{name}_gtFine_labelIds.png", ids)
        _save(root / f"gtFine/val/{name}_gtFine_color.png", np.stack([ids] * 3, -1))
        made.images[name], made.labels[name] = image, each_pixel(ids, lambda i: new.get(i, 255))
    return made


SHIPPED = {
    "voc20": voc,
    "voc21": voc,
    "context59": context,
    "context60": context,
    "context459": context459,
    "coco_object": lambda root: coco(root, things_only=True),
    "coco_stuff164k": lambda root: coco(root, things_only=False),
    "ade20k": ade20k,
    "ade847": ade847,
    "city_scapes": city_scapes,
}
