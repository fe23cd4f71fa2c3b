"""Verify a prepared dataset: list all problems.

The exit code is 1 if there are any.

sfp check voc21
sfp check coco_stuff164k --data /datasets --workers 16
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from sfp.datasets.check import check_dataset
from sfp.datasets.layouts import LAYOUTS
from sfp.errors import SFPError, run_command
from sfp.options import HelpFormatter


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="sfp check",
        description=__doc__.split("\n\n")[0],
        formatter_class=HelpFormatter,
    )
    parser.add_argument("name", help=", ".join(LAYOUTS))
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("SFP_DATA", "data")), help="the data root"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument(
        "--subset",
        action="store_true",
        help="the dataset is a part of the published split on purpose",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(arguments)
    problems: list[str] = []
    return run_command(lambda args: problems.extend(check(args)), args) or int(bool(problems))


def check(args: argparse.Namespace) -> tuple[str, ...]:
    """Print the histogram and the problems, and return these.

    Raises:
        SFPError: unknown dataset, or it is not there.
    """
    if args.workers < 1:
        raise SFPError(f"--workers is {args.workers}; give at least 1.")
    findings = check_dataset(args.name, args.data, args.workers, args.subset)
    if findings.pixels:
        print(
            f"labels of {findings.images} images, percent of all pixels:\n"
            f"{findings.histogram(LAYOUTS[args.name])}"
        )
    for problem in findings.problems:
        print(f"problem: {problem}")
    count = len(findings.problems)
    verdict = f"{count} problem{'s' * (count > 1)}" if count else "sound"
    print(f"{args.name}: {findings.images} images, {verdict}")
    return findings.problems
