"""Segment photographs by words: an overlay, a label PNG, and files for other tools.

sfp segment photo.jpg --names "cat, sofa, window"
sfp segment scene.jpg --names "sea; boat, ship; sky" --model Toyland --out pictures
sfp segment photos --names ade20k --format overlay,coco,cvat --parts
sfp segment scene.jpg --names "sea, sky" --model Toyland --method ProxyCLIP --options proxy=colour
sfp segment photos --names "cat, sofa" --background "background, wall, floor" --methods
CLIP,SC-CLIP,SFP
sfp segment "shards/*.tar" film.mp4 --every 30 --names "cat, sofa" --processes 8
sfp segment list.txt --names "cat, sofa" --engine ray --address head:6379

A folder's pictures are found in its subfolders too, and their results lie in the same subfolders of
--out. The same command again skips what is done, after any interruption too; a changed setting or
picture is done again. Two pictures of one name get results of two names.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sfp
from sfp.errors import SFPError, run_command, unknown_choice
from sfp.exports.png import read_provenance
from sfp.files import whole_file
from sfp.many.recipe import LABELS, Recipe, is_result, settings_of
from sfp.many.sources import Sources
from sfp.names import BACKGROUND, read_names, usual_background
from sfp.options import HelpFormatter, add_weights_arguments, parse_options, weights_arguments
from sfp.registry import registered_names

if TYPE_CHECKING:
    from sfp.exports.instances import Annotated
    from sfp.many.run import Engine

FORMATS = ("overlay", "png", "npz", "coco", "labelstudio", "cvat", "areas")
_DEFAULTS = {"window": 224, "stride": 112, "short_side": 336}
_COCO, _TASKS, _INTERFACE = "coco.json", "labelstudio.json", "labelstudio.xml"
_CVAT, _AREAS = "cvat.zip", "areas.csv"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="sfp segment",
        description=__doc__.split("\n\n")[0],
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add(
        "images",
        nargs="+",
        help="pictures, folders, lists (.txt, or - for the standard input), globs in quotes, tars"
        " of web datasets, videos, Parquet tables",
    )
    add(
        "--names",
        required=True,
        help='what to look for: "cat, sofa, window"; with ";" between names, "," parts synonyms;'
        " or a file with one name a line; or a shipped list such as ade20k",
    )
    around = parser.add_mutually_exclusive_group()
    around.add_argument(
        "--background",
        help="what fits none of the names: a label alone, for pixels below prob_thd, or words to"
        " ask for, with ',' between them; usual ones are added to five names or fewer",
    )
    around.add_argument(
        "--no-background", action="store_true", help="add no words: each pixel gets a name"
    )
    add("--out", type=Path, default=Path("segmented"), help="folder for the results")
    add(
        "--format",
        default="overlay,png",
        metavar="A,B",
        help=f"which of {', '.join(FORMATS)}; png is always written, the last four are one file"
        " for all pictures",
    )
    add(
        "--parts",
        action="store_true",
        help="in coco, labelstudio and cvat an annotation for each connected part of a name",
    )
    methods = parser.add_mutually_exclusive_group()
    methods.add_argument(
        "--method", default="SFP", help="SFP, SFP-release, CLIP ...; sfp methods lists them all"
    )
    methods.add_argument(
        "--methods",
        metavar="A,B,C",
        help="several methods: a strip of their results side by side for each picture",
    )
    add("--model", default="ViT-B/16", help="CLIP model; Toyland needs no download")
    add("--pretrained", default="openai", help="open_clip tag, or the path of a checkpoint")
    add_weights_arguments(parser)
    add("--no-purify", action="store_true", help="switch purification off")
    add("--pm", help="detector: SOM, L2, LOF ...; the method's own by default")
    add(
        "--options",
        nargs="+",
        metavar="KEY=VALUE",
        default=[],
        help="further options, such as sigma=3 or prob_thd=0.2",
    )
    add("--window", type=int, default=224, help="side of the sliding window; 0 for whole images")
    add("--stride", type=int, default=112, help="of the window")
    add("--short-side", type=int, default=336, help="pictures are resized to it first")
    add("--device", help="cuda or cpu; CUDA where there is one by default")
    many = parser.add_argument_group("many pictures")
    add_many = many.add_argument
    add_many("--every", type=int, default=1, metavar="N", help="each N-th frame of a video")
    add_many("--processes", type=int, default=1, metavar="N", help="on this machine")
    add_many(
        "--shard",
        type=_shard,
        default="1/1",
        metavar="I/N",
        help="do only the I-th of N shares, while others do theirs into the same --out",
    )
    add_many("--engine", choices=("local", "ray"), default="local", help="ray: actors of Ray Data")
    add_many("--address", help="of a Ray cluster, HOST:PORT or auto; this machine by default")
    add_many("--actors", type=int, metavar="N", help="of Ray; one for each GPU by default")
    add("--fresh", action="store_true", help="also do again what is done")
    add("--debug", action="store_true", help="show the traceback of an error")
    return run_command(segment, parser.parse_args(arguments))


def segment(args: argparse.Namespace) -> None:
    """Segment all pictures that aren't done and write the results.

    Raises:
        SFPError: wrong names, pictures, model or folder; or pictures that can't be segmented, named
            when all others are done.
    """
    from sfp.many.run import run

    sources = Sources(args.images, args.out, args.every, is_result)
    recipe, formats = read_recipe(args)
    if "cvat" in formats:
        check_cvat_names(sources)
    engine, workers = choose_engine(args, recipe)
    summary = run(
        sources,
        args.out,
        recipe,
        engine,
        shard=args.shard,
        fresh=args.fresh,
        workers=workers,
    )
    if summary.done_before:
        print(
            f"{summary.done_before} of {summary.pictures} are done with these settings; --fresh"
            " does them again"
        )
    if summary.segmented > 1:
        print(summary)
    if not args.methods:
        collect(args.out, summary.example, formats)
    if summary.failed == 1:
        raise SFPError(summary.failures[0])
    if summary.failed:
        raise SFPError(
            f"{summary.failed} of {summary.pictures} images could not be segmented and are named"
            f" above, the first because: {summary.failures[0]}"
        )


def check_cvat_names(sources: Sources) -> None:
    """Raises SFPError for two pictures that CVAT couldn't tell apart, before any is segmented."""
    from sfp.exports.cvat import cvat_name

    files = {found.key: found.name for found in sources if not isinstance(found, SFPError)}
    taken: dict[str, str] = {}
    for name in file_names(files.items()):
        cvat_name(name, taken)


def file_names(files: Iterable[tuple[str, str]]) -> list[str]:
    """What pictures, given by path and name, are called in one file for all: by their paths where
    several have one name.
    """
    files = list(files)
    named = Counter(name for _, name in files)
    return [name if named[name] == 1 else path for path, name in files]


def choose_engine(args: argparse.Namespace, recipe: Recipe) -> tuple[Engine | None, int]:
    """What works on the pictures, and in how many processes.

    Raises:
        SFPError: options that don't fit each other.
    """
    if args.engine != "ray":
        for option in ("address", "actors"):
            if getattr(args, option) is not None:
                raise SFPError(f"--{option} is Ray's; add --engine ray, or leave it out.")
        if args.processes == 1:
            return None, 1
        from sfp.many.processes import several_processes

        return several_processes(recipe, args.out, args.processes, args.fresh), args.processes
    if args.processes != 1:
        raise SFPError(
            "--processes is for one machine without Ray; give --actors for --engine ray."
        )
    from sfp.many.on_ray import on_ray

    return on_ray(recipe, args.out, args.address, args.actors, args.fresh), args.actors or 0


def read_recipe(args: argparse.Namespace) -> tuple[Recipe, list[str]]:
    """The arguments as a recipe, and the formats; what is said of the names is printed.

    All is checked as far as it goes without a model.

    Raises:
        SFPError: wrong names, formats, methods or options.
    """
    names, file = read_names(args.names)
    if file:
        print(f"{len(names)} names of {file}")
    formats = parse_formats(args.format)
    titles = [args.method]
    if args.methods is not None:
        titles = [title.strip() for title in args.methods.split(",")]
        if len(set(titles)) < len(titles):
            raise SFPError(f"--methods {args.methods} names one twice; name each once.")
        if args.format != "overlay,png" or args.parts:
            raise SFPError("--methods draws a strip alone; leave --format and --parts out.")
    background = parse_background(args.background)
    if background is None and not args.no_background:
        background = usual_background(names, titles)
        if background:
            given = "a single name" if len(names) == 1 else f"{len(names)} names"
            print(
                f"Around {given} the background is asked for, too: {', '.join(background[1:])};"
                " --no-background leaves it out"
            )
    known = registered_names("sfp.methods")
    for title in titles:
        if title not in known:
            raise unknown_choice("method", title, [name for name, own in known.items() if own])
    options = dict(
        pm=args.pm,
        purify=False if args.no_purify else None,
        window=args.window,
        stride=args.stride,
        short_side=args.short_side,
        **weights_arguments(args),
    )
    further = parse_options(args.options, "--options")
    if twice := [
        key
        for key in further
        if key in ("method", "model", "pretrained", "device")
        or options.get(key) != _DEFAULTS.get(key)
    ]:
        raise SFPError(
            f"--options names {twice[0]}, which has an option of its own; give "
            f"--{twice[0].replace('_', '-')} alone."
        )
    options.update(further)
    threshold = options.get("prob_thd") or options.get("area_thd")
    if background is None and threshold and names[0][0].lower() != BACKGROUND:
        raise SFPError(
            f"--options has a threshold, but what falls below it would become {names[0][0]!r}, the "
            f"first name; add --background LABEL."
        )
    weights = dict(model=args.model, pretrained=args.pretrained, device=args.device)
    asked = dict(names=names, background=background, methods=titles, parts=args.parts)
    asked |= {"sfp": sfp.__version__, "options": options, **weights}
    asked["files"] = {  # weights and tables are read again where they have changed
        value: [os.stat(value).st_size, os.stat(value).st_mtime_ns]
        for value in (args.pretrained, *options.values())
        if isinstance(value, str) and os.path.isfile(value)
    }
    plain = json.loads(json.dumps(asked, default=repr))
    recipe = Recipe(
        titles,
        names,
        background,
        options=options,
        strip=args.methods is not None,
        overlay="overlay" in formats,
        whole="npz" in formats,
        parts=args.parts,
        asked=plain,
        **weights,
    )
    return recipe, formats


def collect(out: Path, example: str, formats: list[str]) -> None:
    """Write the files that are one for all pictures: of all results in ``out`` that have the
    settings of the example, which is a stem.

    Raises:
        SFPError: two pictures that CVAT couldn't tell apart, or a file that can't be written.
    """
    forms = [form for form in FORMATS[3:] if form in formats]
    own = read_provenance(out / f"{example}{LABELS}") if forms and example else None
    if own is None:
        return
    settings = settings_of(own)
    files, others = [], 0
    for file in sorted(out.rglob(f"*{LABELS}")):
        record = read_provenance(file)
        if record is not None and "source" in record and "scores" in record:
            files += [(file, record)] if settings_of(record) == settings else []
            others += settings_of(record) != settings
    sources = [record["source"] for _, record in files]
    called = file_names((source["path"], source["name"]) for source in sources)

    def pictures() -> Iterator[Annotated]:
        for (file, record), name in zip(files, called, strict=True):
            yield _annotated(file, record, name)

    written = []
    if "coco" in forms:
        from sfp.exports.coco import coco_dataset

        written.append(_write(out / _COCO, json.dumps(coco_dataset(pictures(), settings))))
    if "labelstudio" in forms:
        from sfp.exports.label_studio import label_studio_interface, label_studio_tasks

        model = f"sfp {settings['sfp']}, {settings['method']}, {settings['model']}"
        tasks = json.dumps(label_studio_tasks(pictures(), model))
        first = next(pictures())
        names = [name for label, name in enumerate(first.names) if first.category(label)]
        colours = first.palette[len(first.names) - len(names) :].tolist()
        written.append(_write(out / _TASKS, tasks))
        written.append(_write(out / _INTERFACE, label_studio_interface(names, colours)))
    if "areas" in forms:
        from sfp.exports.areas import area_table

        written.append(_write(out / _AREAS, area_table(pictures())))
    if "cvat" in forms:
        from sfp.exports.cvat import write_cvat

        write_cvat(out / _CVAT, pictures())
        written.append(out / _CVAT)
    left_out = f", without {others} results of other settings" if others else ""
    count = "1 picture" if len(files) == 1 else f"{len(files)} pictures"
    print(f"{count}{left_out} -> {', '.join(map(str, written))}")


def parse_formats(text: str) -> list[str]:
    """Names of ``FORMATS`` with commas between them.

    Raises:
        SFPError: another one.
    """
    formats = [form.strip() for form in text.split(",")]
    for form in formats:
        if form not in FORMATS:
            raise unknown_choice("format", form, FORMATS)
    return formats


def parse_background(text: str | None) -> str | list[str] | None:
    """ "nothing" as a label alone, "background, wall" as words to ask for."""
    if text is None or "," not in text:
        return text
    return [word.strip() for word in text.split(",")]


def _write(file: Path, text: str) -> Path:
    with whole_file(file) as partial:
        partial.write_text(text, encoding="utf-8")
    return file


def _annotated(file: Path, record: dict[str, Any], name: str) -> Annotated:
    """A label PNG's instances, with the scores of its record."""
    import numpy as np
    from PIL import Image

    from sfp.result import Segmentation

    with Image.open(file) as opened:
        labels = np.asarray(opened).astype(np.int64)
    nothing = np.broadcast_to(np.uint8(0), (*labels.shape, 3))
    result = Segmentation(labels, tuple(record["names"]), None, nothing, record)
    picture = result.annotated(name, parts=record["parts"])
    scored = zip(picture.instances, record["scores"], strict=True)
    return replace(picture, instances=[replace(each, score=score) for each, score in scored])


def _shard(text: str) -> tuple[int, int]:
    """Which share of how many, from "I/N"."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    number, shards = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= shards:
        raise argparse.ArgumentTypeError(f"{text!r} is no share; write I/N, such as 2/8")
    return number, shards
