"""Verify this toolkit on the machine at hand: weights, devices, speed, published numbers.

sfp verify
sfp verify --minutes 60 --images cat.jpg=cat street.jpg=bus --out verified
sfp verify --pretrained ViT-B-16.pt --data-root voc21=data/VOCdevkit/VOC2012 ade20k=data/ADE
sfp verify --model Toyland --steps a b c d

It does what it can with what is there and says of the rest why not. The same command again goes on
where it stopped: what was found with the same weights, settings and code isn't measured again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sfp.errors import SFPError, run_command, unknown_choice
from sfp.files import find_config
from sfp.options import HelpFormatter, add_weights_arguments, weights_arguments
from sfp.registry import registered_names
from sfp.verification import STEPS
from sfp.verification.given import Given, read_images, read_roots

_PRECISIONS = ("fp32", "bf16", "fp16")


def main(arguments: Sequence[str] | None = None) -> int:
    steps = "; ".join(f"{letter}: {title}" for letter, (_, title) in STEPS.items())
    parser = argparse.ArgumentParser(
        prog="sfp verify",
        description=f"{__doc__.splitlines()[0]} Steps: {steps}.",
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("work_dirs/verify"), help="folder for the report")
    add("--minutes", type=float, help="at most so long; the most telling comes first")
    add("--steps", nargs="+", metavar="a", default=list(STEPS), help="which steps")
    add("--model", help="CLIP model; ViT-B/16, or Toyland where its weights can't be had")
    add("--pretrained", help="open_clip tag, or the path of a checkpoint; OpenAI's if not given")
    add_weights_arguments(parser)
    add("--device", help="cuda or cpu; CUDA where there is one by default")
    add(
        "--precisions",
        nargs="+",
        default=list(_PRECISIONS),
        help="that the device is compared in with the CPU's fp32",
    )
    add(
        "--cpu-precisions",
        nargs="+",
        default=["bf16"],
        help="the same of the CPU; fp16 is slow on most",
    )
    add(
        "--images",
        nargs="+",
        default=[],
        metavar="FILE=word",
        help="photographs and the word for each, or a .csv with the columns file and word",
    )
    add(
        "--data-root",
        nargs="+",
        default=[],
        metavar="NAME=FOLDER",
        help="folders of datasets by the names of configs; SFP_DATA's if not given",
    )
    add(
        "--datasets", nargs="+", default=[], metavar="NAME", help="all that are prepared by default"
    )
    add("--methods", nargs="+", default=[], metavar="NAME", help="all by default")
    add(
        "--images-each",
        type=int,
        metavar="N",
        help="so many images of each dataset; all by default",
    )
    add(
        "--published",
        type=Path,
        help="a .csv like paper_results.csv instead of the papers' numbers",
    )
    add(
        "--questions",
        nargs="+",
        default=[],
        metavar="N",
        help="which of SFP's open questions step g sweeps; all by default",
    )
    add("--fresh", action="store_true", help="forget what an earlier run found")
    add("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(arguments)
    args.passed = False
    return run_command(verify, args) or int(not args.passed)


def verify(args: argparse.Namespace) -> None:
    """Do the steps and write the report; exit code 1 where something failed.

    Raises:
        SFPError: a wrong argument, or a folder that can't be written.
    """
    given = checked(args)
    from sfp.verification.run import verify

    args.passed = verify(given, [letter for letter in STEPS if letter in args.steps], args.fresh)


def checked(args: argparse.Namespace) -> Given:
    """The arguments, before torch is imported.

    Raises:
        SFPError: one of them is wrong.
    """
    for step in args.steps:
        if step not in STEPS:
            raise unknown_choice("step", step, STEPS)
    for precision in (*args.precisions, *args.cpu_precisions):
        if precision not in _PRECISIONS:
            raise unknown_choice("precision", precision, _PRECISIONS)
    known = registered_names("sfp.methods")
    for method in args.methods:
        if method not in known:
            raise unknown_choice("method", method, [name for name, words in known.items() if words])
    for dataset in args.datasets:
        find_config(dataset)
    for option, value in (("--minutes", args.minutes), ("--images-each", args.images_each)):
        if value is not None and not value > 0:
            raise SFPError(f"{option} is {value}; give a number above 0, or leave it out.")
    if args.published is not None and not args.published.is_file():
        raise SFPError(f"There is no file {args.published} (--published); check the path.")
    return Given(
        out=args.out,
        model=args.model,
        pretrained=args.pretrained,
        weights={key: own for key, own in weights_arguments(args).items() if own is not None},
        device=args.device,
        precisions=tuple(args.precisions),
        cpu_precisions=tuple(args.cpu_precisions),
        images=read_images(args.images),
        data_roots=read_roots(args.data_root),
        datasets=tuple(args.datasets),
        methods=tuple(args.methods),
        images_each=args.images_each,
        minutes=args.minutes,
        published=args.published,
        questions=tuple(args.questions),
        debug=args.debug,
    )
