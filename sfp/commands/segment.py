"""Segment photographs by words: an overlay, a label PNG, and files for other tools.

sfp segment photo.jpg --names "cat, sofa, window"
sfp segment scene.jpg --names "sea; boat, ship; sky" --model Toyland --out pictures
sfp segment photos --names ade20k --format overlay,coco,cvat --parts
sfp segment scene.jpg --names "sea, sky" --model Toyland --method ProxyCLIP --options proxy=colour
sfp segment photos --names "cat, sofa" --background "background, wall, floor" --methods
CLIP,SC-CLIP,SFP

A folder's pictures are found in its subfolders too, and their results lie in the same subfolders of
--out. Each label PNG carries its settings and its source, so that the same command again skips
what is done, and a changed setting or picture is done again. Two pictures of one name get results
of two names.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sfp
from sfp.errors import SFPError, run_command, unknown_choice
from sfp.exports.png import png_provenance, read_provenance
from sfp.files import make_folder, only_one, sweep, whole_file
from sfp.names import BACKGROUND, PICTURES, read_names, usual_background
from sfp.options import add_weights_arguments, parse_options, weights_arguments
from sfp.registry import registered_names

if TYPE_CHECKING:
    from sfp import Segmenter
    from sfp.exports.instances import Annotated

FORMATS = ("overlay", "png", "npz", "coco", "labelstudio", "cvat")
_DEFAULTS = {"window": 224, "stride": 112, "short_side": 336}
_LABELS, _OVERLAY, _STRIP, _WHOLE = "_labels.png", "_overlay.jpg", "_methods.png", "_result.npz"
_COCO, _TASKS, _INTERFACE = "coco.json", "labelstudio.json", "labelstudio.xml"
_CVAT = "cvat.zip"
_OF_PICTURE = ("source", "scores", "asked")  # what a record says of its picture and its command


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="sfp segment",
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("images", nargs="+", type=Path, help="pictures, or folders of pictures")
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
        " ask for, with ',' between them; usual ones are added to five names or less",
    )
    around.add_argument(
        "--no-background", action="store_true", help="add no words: each pixel gets a name"
    )
    add("--out", type=Path, default=Path("segmented"), help="folder for the results")
    add(
        "--format",
        default="overlay,png",
        metavar="A,B",
        help=f"which of {', '.join(FORMATS)}; png is always written, the last three are one file"
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
    add("--stride", type=int, default=112)
    add("--short-side", type=int, default=336, help="pictures are resized to it first")
    add("--device", help="cuda or cpu; CUDA where there is one by default")
    add("--fresh", action="store_true", help="also do again what is done")
    add("--debug", action="store_true", help="show the traceback of an error")
    return run_command(segment, parser.parse_args(arguments))


@dataclass(frozen=True, eq=False)
class Job:
    """A picture, the stem of its results, and what tells its file from another or a changed one."""

    image: Path
    stem: Path
    source: dict[str, Any]


@dataclass(frozen=True)
class Question:
    """What is asked of every picture.

    Attributes:
        names, background: as ``Segmenter`` takes them.
        titles: the methods.
        options: of ``Segmenter``, the method's among them.
        formats: of ``FORMATS``.
        asked: all of it that changes a result, plain values as in JSON.
    """

    names: list[list[str]]
    background: str | list[str] | None
    titles: list[str]
    options: dict[str, Any]
    formats: list[str]
    asked: dict[str, Any]


def segment(args: argparse.Namespace) -> None:
    """Segment all pictures that aren't done and write the results.

    Raises:
        SFPError: wrong names, pictures, model or folder; or pictures that can't be segmented, named
            when all others are done.
    """
    images = find_images(args.images)
    question = read_question(args)
    endings = [_STRIP] if args.methods else [_LABELS]  # the first one carries the record
    for form, ending in (("overlay", _OVERLAY), ("npz", _WHOLE)):
        if form in question.formats and not args.methods:
            endings.append(ending)
    with only_one(args.out, "--out"):
        sweep(args.out)
        jobs = plan(images, args.out, endings[0])
        records = {job: _record(args.out, job, endings) for job in jobs}
        left = [job for job in jobs if args.fresh or not _is_asked(records[job], job, question)]
        failed: list[SFPError] = []
        if left:
            segmenters = build(question, args)
            cards = [
                segmenter.protocol(question.names, background=question.background)
                for segmenter in segmenters
            ]
            card = {"methods": cards} if args.methods else _with_names(cards[0], question)
            card["parts"] = args.parts
            if not args.fresh:  # the same settings may have been asked for in other words
                left = [job for job in left if not _is_done(records[job], job, card)]
        if len(left) < len(jobs):
            print(
                f"{len(jobs) - len(left)} of {len(jobs)} are done with these settings; --fresh does"
                " them again"
            )
        if left:
            failed = segment_all(args, jobs, left, segmenters, question, card, endings)
        if not args.methods:
            collect(args.out, jobs, question.formats)
    if len(failed) == 1:
        raise failed[0]
    if failed:
        raise SFPError(
            f"{len(failed)} of {len(jobs)} images could not be segmented and are named above, the "
            f"first because: {failed[0]}"
        )


def read_question(args: argparse.Namespace) -> Question:
    """The arguments, checked as far as it goes without a model, and what is said of the names.

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
    return Question(names, background, titles, options, formats, plain)


def build(question: Question, args: argparse.Namespace) -> list[Segmenter]:
    """A segmenter for each method, all on one frozen CLIP."""
    from sfp import Segmenter

    found: list[Segmenter] = []
    for title in question.titles:
        clip = found[0].pipeline.method.clip if found else args.model
        found.append(Segmenter(title, clip, args.pretrained, args.device, **question.options))
    return found


def find_images(paths: list[Path]) -> dict[Path, tuple[Path, str]]:
    """Files as given, and the pictures in folders and their subfolders: each with the stem of its
    results, and its name for other tools.

    Hidden files and what this program made are left out.

    Raises:
        SFPError: no such file, or a folder without pictures.
    """
    found: dict[Path, tuple[Path, str]] = {}
    for path in paths:
        if path.is_dir():
            inside = [
                p
                for p in sorted(path.rglob("*"))
                if p.suffix.lower() in PICTURES and not _hidden(p.relative_to(path))
            ]
            inside = [p for p in inside if not _is_result(p)]
            if not inside:
                raise SFPError(
                    f"The folder {path} has no pictures ({', '.join(PICTURES)}); name one that "
                    f"has some."
                )
            names = {p: p.relative_to(path) for p in inside}
            found |= {p: (name.with_suffix(""), name.as_posix()) for p, name in names.items()}
        elif not os.path.lexists(path):
            raise SFPError(f"There is no image file {path}; check the path.")
        else:
            found[path] = (Path(path.stem), path.name)
    return found


def plan(images: dict[Path, tuple[Path, str]], out: Path, ending: str) -> list[Job]:
    """A job for each picture.

    Its old results' stem if it has any, else one that is free, in ``out`` and among the jobs.
    """
    jobs: dict[Path, Job] = {}
    for image, (stem, name) in images.items():
        path = os.path.relpath(os.path.realpath(image), os.path.realpath(out))
        details = image.stat() if image.is_file() else None
        source = {
            "path": path,
            "name": name,
            "bytes": details and details.st_size,
            "modified_ns": details and details.st_mtime_ns,
        }
        for candidate in _stems(stem, image.suffix):
            file = out / f"{candidate}{ending}"
            own = (read_provenance(file) or {}).get("source", {}).get("path") == path
            if candidate not in jobs and (own or not file.exists()):
                jobs[candidate] = Job(image, candidate, source)
                break
    return list(jobs.values())


def segment_all(
    args: argparse.Namespace,
    jobs: list[Job],
    left: list[Job],
    segmenters: list[Segmenter],
    question: Question,
    card: dict[str, Any],
    endings: list[str],
) -> list[SFPError]:
    """Segment the pictures that are left and write the results; returns what went wrong with some.

    Raises:
        SFPError: results that can't be written.
    """
    from tqdm import tqdm

    from sfp.result import compare

    keep = False if args.methods else True if _WHOLE in endings else "label"
    streams = [
        segmenter.many(
            [job.image for job in left],
            question.names,
            background=question.background,
            keep_scores=keep,
            yield_errors=True,
        )
        for segmenter in segmenters
    ]
    failed: list[SFPError] = []
    answers = tqdm(
        zip(left, *streams, strict=True),
        "segmenting",
        len(left),
        unit="image",
        disable=len(jobs) == 1,
    )
    for job, *results in answers:
        error = next((result for result in results if isinstance(result, SFPError)), None)
        if error is not None:
            failed.append(error)
            if len(jobs) > 1:
                tqdm.write(str(error))
            continue
        files = [args.out / f"{job.stem}{ending}" for ending in endings]
        make_folder(files[0].parent)
        record = {**card, "source": job.source, "asked": question.asked}
        if args.methods:
            shown = dict(zip(question.titles, results, strict=True))
            with whole_file(files[0]) as partial:
                compare(shown).save(partial, pnginfo=png_provenance(record))
            report = "compared"
        else:
            found = results[0].annotated(parts=args.parts).instances
            record["scores"] = [instance.score for instance in found]
            result = replace(results[0], protocol=record)
            for file in reversed(files):  # the one that says that it is done comes last
                result.save(file)
            report = ", ".join(f"{name} {100 * area:.1f}%" for name, area in result.areas.items())
        tqdm.write(f"{job.image}: {report} -> {', '.join(map(str, reversed(files)))}")
    return failed


def collect(out: Path, jobs: list[Job], formats: list[str]) -> None:
    """Write the files that are one for all pictures: of these jobs, and of all else in ``out`` that
    has their settings.

    Raises:
        SFPError: two pictures that CVAT couldn't tell apart, or a file that can't be written.
    """
    forms = [form for form in FORMATS[3:] if form in formats]
    own = next((found for job in jobs if (found := _record(out, job, [_LABELS]))), None)
    if not forms or own is None:
        return
    settings = _settings(own)
    files, others = [], 0
    for file in sorted(out.rglob(f"*{_LABELS}")):
        record = read_provenance(file)
        if record is not None and "source" in record and "scores" in record:
            files += [(file, record)] if _settings(record) == settings else []
            others += _settings(record) != settings
    named = [record["source"]["name"] for _, record in files]

    def pictures() -> Iterator[Annotated]:
        for file, record in files:
            source = record["source"]
            once = named.count(source["name"]) == 1
            yield _annotated(file, record, source["name"] if once else source["path"])

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


def _with_names(card: dict[str, Any], question: Question) -> dict[str, Any]:
    """A protocol with the names of its labels."""
    label = [card["background"]] if card["background"] else []
    return {**card, "names": [*label, *(words[0] for words in card["words"])]}


def _record(out: Path, job: Job, endings: list[str]) -> dict[str, Any] | None:
    """What an earlier run says of a picture's results, where they are all there."""
    files = [out / f"{job.stem}{ending}" for ending in endings]
    return read_provenance(files[0]) if all(file.is_file() for file in files) else None


def _settings(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in _OF_PICTURE}


def _is_asked(record: dict[str, Any] | None, job: Job, question: Question) -> bool:
    """Whether a picture was done by the same command, which is known without a model."""
    return (
        record is not None
        and record.get("source") == job.source
        and record.get("asked") == question.asked
    )


def _is_done(record: dict[str, Any] | None, job: Job, card: dict[str, Any]) -> bool:
    """Whether a picture was done with the same settings."""
    return record is not None and record.get("source") == job.source and _settings(record) == card


def _stems(stem: Path, suffix: str) -> Iterator[Path]:
    """photo, photo_jpg, photo_jpg-2, photo_jpg-3 ..."""
    yield stem
    longer = stem.with_name(f"{stem.name}_{suffix.lstrip('.').lower()}")
    yield longer
    for number in count(2):
        yield longer.with_name(f"{longer.name}-{number}")


def _is_result(path: Path) -> bool:
    """Whether this program made the file: it or the PNG that came with it carries a provenance."""
    for ending, carrier in ((_LABELS, _LABELS), (_OVERLAY, _LABELS), (_STRIP, _STRIP)):
        if path.name.endswith(ending):
            return (
                read_provenance(path.with_name(path.name.removesuffix(ending) + carrier))
                is not None
            )
    return False


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
