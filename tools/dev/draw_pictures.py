"""Draw the pictures of README.md and docs/: scenes with labels, the inspector's figures, the page.

python tools/dev/draw_pictures.py docs/pictures
python tools/dev/draw_pictures.py docs/pictures --only page.png

All scenes are Toyland's, all models its CLIP, so nothing is downloaded; ProxyCLIP's proxy is plain
colours. page.png, a screenshot of the page, is drawn only when it is asked for: it needs the extras
page and dev, and Chromium.
"""

from __future__ import annotations

import argparse
import functools
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from sfp import Inspection, Segmenter, list_methods, load_clip
from sfp.clip.clip import FrozenCLIP
from sfp.datasets import toyland
from sfp.drawing import sheet
from sfp.errors import SFPError, run_command, unknown_choice
from sfp.files import whole_file
from sfp.inspection.figures import attention_figure, feature_figure, outlier_figure, patch_figure
from sfp.options import HelpFormatter
from sfp.page.backend import TOYLAND_OPTIONS

_FEW = ("CLIP", "MaskCLIP", "ClearCLIP", "SC-CLIP", "CLIPSeg", "SFP")
_SCENE, _SCENES = 10, (10, 15, 12)  # of the split val
_PATCH = (11, 13)  # on the boat of _SCENE
_LAYERS = (1, 3, 5, 7, 9, 11)
_HEIGHT, _COLUMNS = 150, 5
# 256 colours are less than half the bytes; MAXCOVERAGE keeps the colours of the legend
_PALETTED = dict.fromkeys(("attention.png", "outliers.png", "patch.png"), Image.Quantize.MEDIANCUT)
_PALETTED |= dict.fromkeys(("toyland.png", "methods.png"), Image.Quantize.MAXCOVERAGE)
# as configs/methods has them for Toyland
_OPTIONS = {**TOYLAND_OPTIONS, "CLIPSeg": dict(attention_layer=2)}
_PALETTE = np.array(toyland.PALETTE, np.uint8)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=HelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder for the pictures")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        default=[name for name in PICTURES if name != "page.png"],
        help="which",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return run_command(draw_all, parser.parse_args())


def draw_all(args: argparse.Namespace) -> None:
    """Draw the pictures that are asked for.

    Raises:
        SFPError: an unknown picture, or the folder can't be written.
    """
    for name in args.only:
        if name not in PICTURES:
            raise unknown_choice("picture", name, PICTURES)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        for name in args.only:
            with whole_file(args.out / name) as partial:
                picture = PICTURES[name]()
                if name in _PALETTED:
                    picture = picture.quantize(256, _PALETTED[name], dither=Image.Dither.NONE)
                picture.save(partial, quality=95, optimize=partial.suffix == ".png")
            print(f"-> {args.out / name}")
    except OSError as error:
        raise SFPError(f"{args.out} can't be written ({error}); choose another folder.") from error


@functools.cache
def segmenter(method: str) -> Segmenter:
    """A method on the one frozen CLIP."""
    return Segmenter(method, clip(), **_OPTIONS.get(method, {}))


@functools.cache
def clip() -> FrozenCLIP:
    return load_clip("Toyland", device="cpu")


@functools.cache
def inspection() -> Inspection:
    """SFP's inspection of the scene."""
    return segmenter("SFP").inspect(scene(_SCENE).image)


@functools.cache
def scene(number: int) -> toyland.Scene:
    return toyland.make_scene("val", number)


@functools.cache
def label_map(method: str, number: int) -> np.ndarray:
    """A method's labels (H, W) of a scene."""
    return segmenter(method)(scene(number).image, toyland.CLASSES, keep_scores=False).labels


def photograph() -> Image.Image:
    """The scene that the commands of the README segment."""
    return Image.fromarray(scene(_SCENE).image)


def few_methods() -> Image.Image:
    """Some methods on several scenes, a scene to a row."""
    rows, shown = [], []
    for number in _SCENES:
        labels = {method: label_map(method, number) for method in _FEW}
        labels["true labels"] = scene(number).labels
        shown += labels.values()
        titles = ["image", *labels] if number == _SCENES[0] else [""] * (1 + len(labels))
        pictures = [scene(number).image, *(_PALETTE[each] for each in labels.values())]
        rows.append(list(zip(titles, pictures, strict=True)))
    return sheet(rows, legend(shown), _HEIGHT)


def all_methods() -> Image.Image:
    """Every method on one scene, with its share of right pixels, between image and truth."""
    truth = scene(_SCENE).labels
    labels = {method: label_map(method, _SCENE) for method in list_methods()}
    panels = [("image", scene(_SCENE).image)]
    for method, found in labels.items():
        panels.append((f"{method}: {100 * (found == truth).mean():.0f}%", _PALETTE[found]))
    panels.append(("true labels", _PALETTE[truth]))
    rows = [panels[i : i + _COLUMNS] for i in range(0, len(panels), _COLUMNS)]
    return sheet(rows, legend([*labels.values(), truth]), _HEIGHT)


def legend(labels: list[np.ndarray]) -> list[tuple[str, tuple[int, int, int]]]:
    """Names and colours of the classes that occur."""
    found = np.unique(np.concatenate([each.ravel() for each in labels]))
    return [(toyland.CLASSES[label], toyland.PALETTE[label]) for label in found]


def page() -> Image.Image:
    """The page in Chromium, when it has segmented its first example.

    Raises:
        SFPError: there is no Chromium.
    """
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SFPError(
            "There is no Chromium to draw page.png with; install it (Debian: apt-get install "
            "chromium)."
        )
    command = [sys.executable, "-m", "sfp", "page", "--port", "0"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
        sync_playwright() as playwright,
    ):
        try:
            address = next(
                found[0] for line in server.stdout if (found := re.search(r"http://\S+", line))
            )
            browser = playwright.chromium.launch(
                executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
            )
            window = browser.new_page(viewport=dict(width=1280, height=1010))
            window.goto(address)
            window.wait_for_selector("#sfp-picture img")
            window.click("button#sfp-segment")
            window.wait_for_selector("#sfp-overlay img")
            window.wait_for_timeout(500)
            shot = window.screenshot()
            browser.close()
        finally:
            server.terminate()
    return Image.open(io.BytesIO(shot)).convert("RGB")


PICTURES: dict[str, Callable[[], Image.Image]] = {
    "scene.jpg": photograph,
    "toyland.png": few_methods,
    "methods.png": all_methods,
    "attention.png": lambda: attention_figure(inspection(), _LAYERS),
    "outliers.png": lambda: outlier_figure(inspection(), _LAYERS),
    "patch.png": lambda: patch_figure(inspection(), _PATCH, _LAYERS),
    "features.png": lambda: feature_figure(inspection(), _LAYERS),
    "page.png": page,
}


if __name__ == "__main__":
    sys.exit(main())
