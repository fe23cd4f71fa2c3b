"""Draw what each layer of CLIP does with photographs: attention, outliers, features.

sfp inspect photo.jpg
sfp inspect scene.jpg --model Toyland --detectors SOM,LOF --patch 11,13 --out inspected
sfp inspect scene.jpg --model Toyland --figures heads,mlp --layers 10,11 --numbers
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from sfp.errors import SFPError, run_command, unknown_choice
from sfp.files import make_folder, whole_file
from sfp.many.items import Item
from sfp.many.recipe import is_result
from sfp.many.sources import Sources
from sfp.options import HelpFormatter, add_weights_arguments, parse_options, weights_arguments
from sfp.registry import registered_names

USUAL = ("attention", "outliers", "features")
FIGURES = (*USUAL, "patch", "heads", "mlp")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="sfp inspect",
        description=__doc__.split("\n\n")[0],
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("images", nargs="+", help="pictures, or what sfp segment takes of many")
    add("--out", type=Path, default=Path("inspected"), help="folder for the figures")
    add(
        "--figures",
        help=f"which of {', '.join(FIGURES)}; {', '.join(USUAL)} if not given, patch with --patch",
    )
    add("--layers", help="such as 1,6,11; six spread over the model if not given")
    add("--patch", metavar="ROW,COLUMN", help="what this patch attends to, before and after repair")
    add("--heads", help="of the figure heads, from 1, such as 1,5; all if not given")
    add(
        "--units",
        help="of the figure mlp, from 0, such as 233,841; the six strongest at the outliers of each"
        " layer if not given",
    )
    add("--numbers", action="store_true", help="write all numbers, too, as .npz")
    add("--detectors", default="SOM,L2,LOF", help="of outliers; sfp methods lists them")
    add("--purified", action="store_true", help="of the repaired layers instead of the plain ones")
    add("--method", default="SFP", help="whose repair and features are shown")
    add("--model", default="ViT-B/16", help="CLIP model; Toyland needs no download")
    add("--pretrained", default="openai", help="open_clip tag, or the path of a checkpoint")
    add_weights_arguments(parser)
    add(
        "--options",
        nargs="+",
        metavar="KEY=VALUE",
        default=[],
        help="further options of the method, such as pm=LOF",
    )
    add("--short-side", type=int, default=224, help="pictures are resized to it first")
    add("--device", help="cuda or cpu; CUDA where there is one by default")
    add("--debug", action="store_true", help="show the traceback of an error")
    return run_command(inspect, parser.parse_args(arguments))


def inspect(args: argparse.Namespace) -> None:
    """Draw the figures of each picture, and print how many outliers each layer has.

    Raises:
        SFPError: wrong arguments, pictures, model or folder.
    """
    images = find_images(args.images, args.out)
    patch = read_numbers(args.patch, "--patch", 2)
    layers = read_numbers(args.layers, "--layers")
    heads, units = read_numbers(args.heads, "--heads"), read_numbers(args.units, "--units")
    figures = [*USUAL, "patch"] if patch else list(USUAL)
    if args.figures is not None:
        figures = chosen(args.figures, "figure", FIGURES)
        if "patch" in figures and patch is None:
            raise SFPError("--figures names patch, but no patch is given; add --patch ROW,COLUMN.")
    for option, given, figure in (("--heads", heads, "heads"), ("--units", units, "mlp")):
        if given and figure not in figures:
            raise SFPError(f"{option} is of the figure {figure}; add --figures {figure}.")
    detectors = chosen(args.detectors, "detector", registered_names("sfp.outliers"))
    chosen(args.method, "method", registered_names("sfp.methods"))
    options = parse_options(args.options, "--options")

    from sfp import Segmenter
    from sfp.inspection import figures as drawn

    weights = weights_arguments(args)
    segmenter = Segmenter(
        args.method, args.model, args.pretrained, args.device, **weights, **options
    )
    of = layers or drawn.spread_layers(segmenter.pipeline.method.trunk.layers)
    asked = {kind: of for kind in ("heads", "mlp") if kind in figures}
    for image in images:
        found = segmenter.inspect(image, short_side=args.short_side, detectors=detectors, **asked)
        draw = {
            "attention": lambda f: drawn.attention_figure(f, layers, purified=args.purified),
            "outliers": lambda f: drawn.outlier_figure(f, layers, purified=args.purified),
            "features": lambda f: drawn.feature_figure(f, layers),
            "patch": lambda f: drawn.patch_figure(f, tuple(patch), layers),
            "heads": lambda f: drawn.heads_figure(
                f, of, heads, patch and tuple(patch), purified=args.purified
            ),
            "mlp": lambda f: drawn.mlp_figure(f, of, units, purified=args.purified),
        }
        files = []
        for figure in figures:
            files.append(args.out / f"{image.stem}_{figure}.png")
            make_folder(files[-1].parent)
            picture = draw[figure](found)
            with whole_file(files[-1]) as partial:
                picture.save(partial)
        if args.numbers:
            files.append(found.save(args.out / f"{image.stem}_numbers.npz"))
        print(f"{image.title} -> {', '.join(map(str, files))}")
        stream = found.purified if args.purified else found.plain
        for name, masks in stream.outliers.items():
            counts = " ".join(str(int(mask.sum())) for mask in masks)
            print(f"  outliers by {name}, layer by layer: {counts}")


def find_images(given: list[str], out: Path) -> list[Item]:
    """The pictures that are named.

    Raises:
        SFPError: one of them can't be had.
    """
    found = list(Sources(given, out, is_result=is_result))
    for each in found:
        if isinstance(each, SFPError):
            raise each
    return found


def chosen(text: str, kind: str, choices: Sequence[str]) -> list[str]:
    """Names with commas between them.

    Raises:
        SFPError: one that is not among the choices.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in choices:
            raise unknown_choice(kind, name, choices)
    return names


def read_numbers(text: str | None, option: str, count: int | None = None) -> list[int] | None:
    """Whole numbers with commas between them.

    Raises:
        SFPError: other words, or another count than that.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"\d{1,9}", part) for part in parts) or count not in (None, len(parts)):
        shown = "ROW,COLUMN such as 11,13" if count else "numbers such as 1,6,11"
        raise SFPError(f"{option} is {text!r}; give {shown}.")
    return [int(part) for part in parts]
