"""Segment photographs by words: an overlay with legend and a label PNG for each.

sfp segment photo.jpg --names "cat, sofa, window" --model ViT-B/16
sfp segment scene.jpg --names "sea; boat, ship; sky" --model Toyland --out pictures
sfp segment scene.jpg --names "sea, sky" --model Toyland --method ProxyCLIP --options
proxy=colour
sfp segment photos --names "cat, sofa" --background "background, wall, floor" --methods
CLIP,SC-CLIP,SFP

A folder's pictures are found in its subfolders too, and their results lie in the same subfolders of
--out. Each result PNG carries its settings and its source, so that the same command again skips
what is done, and a changed setting or picture is done again. Two pictures of one name get results
of two names.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from sfp.errors import SFPError, run_command
from sfp.exports.png import png_provenance, read_provenance
from sfp.files import make_folder, only_one, sweep, whole_file
from sfp.names import parse_names
from sfp.options import add_weights_arguments, parse_options, weights_arguments
from sfp.result import compare

if TYPE_CHECKING:
    from sfp import Segmenter

_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_DEFAULTS = {"window": 224, "stride": 112, "short_side": 336}
_LABELS, _OVERLAY, _STRIP = "_labels.png", "_overlay.jpg", "_methods.png"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="sfp segment",
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("images", nargs="+", type=Path, help="pictures, or folders of pictures")
    parser.add_argument(
        "--names",
        required=True,
        help='what to look for: "cat, sofa, window"; with ";" between names, "," parts synonyms',
    )
    parser.add_argument(
        "--background",
        help="what fits none of the names: a label alone, for pixels below prob_thd, or words to"
        " ask for, with ',' between them",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("segmented"), help="folder for the results"
    )
    methods = parser.add_mutually_exclusive_group()
    methods.add_argument(
        "--method", default="SFP", help="SFP, SFP-release, CLIP ...; a wrong name lists them all"
    )
    methods.add_argument(
        "--methods",
        metavar="A,B,C",
        help="several methods: a strip of their results side by side for each picture",
    )
    parser.add_argument("--model", default="ViT-B/16", help="CLIP model; Toyland needs no download")
    parser.add_argument(
        "--pretrained", default="openai", help="open_clip tag, or the path of a checkpoint"
    )
    add_weights_arguments(parser)
    parser.add_argument("--no-purify", action="store_true", help="switch purification off")
    parser.add_argument("--pm", help="detector: SOM, L2, LOF ...; the method's own by default")
    parser.add_argument(
        "--options",
        nargs="+",
        metavar="KEY=VALUE",
        default=[],
        help="further options, such as sigma=3 or prob_thd=0.2",
    )
    parser.add_argument(
        "--window", type=int, default=224, help="side of the sliding window; 0 for the whole image"
    )
    parser.add_argument("--stride", type=int, default=112)
    parser.add_argument(
        "--short-side", type=int, default=336, help="pictures are resized to it first"
    )
    parser.add_argument("--device", help="cuda or cpu; CUDA where there is one by default")
    parser.add_argument("--fresh", action="store_true", help="also do again what is done")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return run_command(segment, parser.parse_args(arguments))


@dataclass(frozen=True)
class Job:
    """A picture, the stem of its results, and what tells its file from another or a changed
    one.
    """

    image: Path
    stem: Path
    source: dict[str, Any]


def find_images(paths: list[Path]) -> dict[Path, Path]:
    """Files as given, and the pictures in folders and their subfolders, each with the stem of its
    results.

    Hidden files and what this program made are left out.

    Raises:
        SFPError: a folder without pictures.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if path.is_dir():
            inside = [
                p
                for p in sorted(path.rglob("*"))
                if p.suffix.lower() in _ENDINGS and not _hidden(p.relative_to(path))
            ]
            inside = [p for p in inside if not _is_result(p)]
            if not inside:
                raise SFPError(
                    f"The folder {path} has no pictures ({', '.join(_ENDINGS)}); name one that "
                    f"has some."
                )
            found.update({p: p.relative_to(path).with_suffix("") for p in inside})
        else:
            found[path] = Path(path.stem)
    return found


def plan(images: dict[Path, Path], out: Path, ending: str) -> list[Job]:
    """A job for each picture.

    Its old results' stem if it has any, else one that is free, in ``out`` and among the jobs.
    """
    jobs: dict[Path, Job] = {}
    for image, stem in images.items():
        path = os.path.relpath(os.path.realpath(image), os.path.realpath(out))
        details = image.stat() if image.is_file() else None
        source = {
            "path": path,
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


def segment(args: argparse.Namespace) -> None:
    """Segment all pictures and write the results.

    Raises:
        SFPError: wrong names, pictures, model or folder.
    """
    from sfp import Segmenter

    images = find_images(args.images)
    names, background = parse_names(args.names), parse_background(args.background)
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
    if background is None and (options.get("prob_thd") or options.get("area_thd")):
        raise SFPError(
            f"--options has a threshold, but what falls below it would become {names[0]!r}, the "
            f"first name; add --background LABEL."
        )
    titles = (
        [title.strip() for title in args.methods.split(",")]
        if args.methods is not None
        else [args.method]
    )
    if len(set(titles)) < len(titles):
        raise SFPError(f"--methods {args.methods} names one twice; name each once.")
    segmenters: list[Segmenter] = []
    for title in titles:  # all on one frozen CLIP
        clip = segmenters[0].pipeline.method.clip if segmenters else args.model
        segmenters.append(Segmenter(title, clip, args.pretrained, args.device, **options))
    settings = [segmenter.protocol(names, background=background) for segmenter in segmenters]
    with only_one(args.out, "--out"):
        sweep(args.out)
        segment_all(args, images, segmenters, settings, names, background)


def segment_all(
    args: argparse.Namespace,
    images: dict[Path, Path],
    segmenters: list[Segmenter],
    settings: list[dict[str, Any]],
    names: list[str | list[str]],
    background: str | list[str] | None,
) -> None:
    """Segment the pictures that aren't done and write the results.

    Raises:
        SFPError: pictures that can't be segmented, named when all others are done; results that
            can't be written.
    """
    endings = (
        [_STRIP] if args.methods else [_LABELS, _OVERLAY]
    )  # the first one carries the provenance
    provenance = {"methods": settings} if args.methods else settings[0]
    jobs = plan(images, args.out, endings[0])

    def is_done(job: Job) -> bool:
        files = [args.out / f"{job.stem}{ending}" for ending in endings]
        return all(file.is_file() for file in files) and read_provenance(files[0]) == {
            **provenance,
            "source": job.source,
        }

    left = [job for job in jobs if args.fresh or not is_done(job)]
    if len(left) < len(jobs):
        print(
            f"{len(jobs) - len(left)} of {len(jobs)} are done with these settings; --fresh does "
            f"them again"
        )
    pictures = [job.image for job in left]
    streams = [
        segmenter.many(pictures, names, background=background, keep_scores=False, yield_errors=True)
        for segmenter in segmenters
    ]
    failed: list[SFPError] = []
    answers = tqdm(
        zip(left, *streams, strict=True),
        "segmenting",
        len(left),
        unit="image",
        disable=len(jobs) == 1 or not left,
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
        if args.methods:
            shown = {
                segmenter.pipeline.method.name: result
                for segmenter, result in zip(segmenters, results, strict=True)
            }
            with whole_file(files[0]) as partial:
                compare(shown).save(
                    partial, pnginfo=png_provenance({**provenance, "source": job.source})
                )
            report = "compared"
        else:
            result = replace(results[0], protocol={**provenance, "source": job.source})
            for file in reversed(files):  # the one that says that it is done comes last
                result.save(file)
            report = ", ".join(f"{name} {100 * area:.1f}%" for name, area in result.areas.items())
        tqdm.write(f"{job.image}: {report} -> {', '.join(map(str, reversed(files)))}")
    if len(failed) == 1:
        raise failed[0]
    if failed:
        raise SFPError(
            f"{len(failed)} of {len(jobs)} images could not be segmented and are named above, the "
            f"first because: {failed[0]}"
        )


def parse_background(text: str | None) -> str | list[str] | None:
    """ "nothing" as a label alone, "background, wall" as words to ask for."""
    if text is None or "," not in text:
        return text
    return [word.strip() for word in text.split(",")]


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
