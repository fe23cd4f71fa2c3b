"""Segment photographs by words: an overlay with legend and a label PNG for each.

python tools/segment.py photo.jpg --names "cat, sofa, window" --model ViT-B/16
python tools/segment.py scene.jpg --names "sea; boat, ship; sky" --model Toyland --out pictures
python tools/segment.py scene.jpg --names "sea, sky" --model Toyland --method ProxyCLIP --options proxy=colour
"""

from __future__ import annotations

import argparse
import ast
import sys
from pathlib import Path

from tqdm import tqdm

from sfp.errors import SFPError, run_command

_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path, help="pictures, or folders of pictures")
    parser.add_argument("--names", required=True, help='what to look for: "cat, sofa, window"; with ";" between names, "," parts synonyms')
    parser.add_argument("--out", type=Path, default=Path("segmented"), help="folder for the results")
    parser.add_argument("--method", default="SFP", help="SFP, SFP-release, CLIP ...; a wrong name lists them all")
    parser.add_argument("--model", default="ViT-B/16", help="CLIP model; Toyland needs no download")
    parser.add_argument("--pretrained", default="openai", help="open_clip tag, or the path of a checkpoint")
    parser.add_argument("--no-purify", action="store_true", help="switch purification off")
    parser.add_argument("--pm", help="detector: SOM, L2, LOF ...; the method's own by default")
    parser.add_argument("--options", nargs="+", metavar="KEY=VALUE", default=[], help="further options, such as sigma=3 or prob_thd=0.2")
    parser.add_argument("--window", type=int, default=224, help="side of the sliding window; 0 for the whole image")
    parser.add_argument("--stride", type=int, default=112)
    parser.add_argument("--short-side", type=int, default=336, help="pictures are resized to it first")
    parser.add_argument("--device", help="cuda or cpu; CUDA where there is one by default")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return run_command(segment, parser.parse_args())


def parse_names(text: str) -> list[str | list[str]]:
    """ "cat, sofa" or "cat; sofa, couch" (with synonyms) as a list of names."""
    if ";" in text:
        return [[word.strip() for word in group.split(",")] for group in text.split(";")]
    return [word.strip() for word in text.split(",")]


def parse_options(pairs: list[str]) -> dict[str, object]:
    """KEY=VALUE as options; a value that is no Python literal is a text.

    Raises:
        SFPError: a pair without "=".
    """
    options: dict[str, object] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise SFPError(f"--options got {pair!r}; write KEY=VALUE, such as sigma=3.")
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value
    return options


def find_images(paths: list[Path]) -> list[Path]:
    """Files as given, and the pictures in folders.

    Raises:
        SFPError: a folder without pictures.
    """
    found = []
    for path in paths:
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in _ENDINGS) if path.is_dir() else [path]
        if not inside:
            raise SFPError(f"The folder {path} has no pictures ({', '.join(_ENDINGS)}).")
        found += inside
    return found


def segment(args: argparse.Namespace) -> None:
    """Segment all pictures and write the results.

    Raises:
        SFPError: wrong names, pictures, model or folder.
    """
    from sfp import Segmenter

    images = find_images(args.images)
    options = dict(pm=args.pm, purify=False if args.no_purify else None, window=args.window, stride=args.stride, short_side=args.short_side)
    segmenter = Segmenter(args.method, args.model, args.pretrained, args.device, **{**options, **parse_options(args.options)})
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SFPError(f"The folder {args.out} can't be made ({error}); choose another with --out.") from error
    for path in tqdm(images, desc="segmenting", unit="image", disable=len(images) == 1):
        result = segmenter(path, parse_names(args.names))
        overlay = result.save(args.out / f"{path.stem}_overlay.jpg")
        labels = result.save(args.out / f"{path.stem}_labels.png")
        areas = ", ".join(f"{name} {100 * area:.1f}%" for name, area in result.areas.items())
        tqdm.write(f"{path}: {areas} -> {overlay}, {labels}")


if __name__ == "__main__":
    sys.exit(main())
