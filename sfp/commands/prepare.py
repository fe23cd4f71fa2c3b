"""Convert what a dataset's owners ship into the layout that the configs read.

An interrupted run is continued by the same command.

sfp prepare voc21 --source VOCtrainval_11-May-2012.tar
sfp prepare context60 --source VOCtrainval_03-May-2010.tar trainval_merged.json
sfp prepare coco_object --download
"""

from __future__ import annotations

import argparse
import os
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

from sfp.datasets.layouts import LAYOUTS
from sfp.datasets.preparation import prepare
from sfp.errors import SFPError, run_command
from sfp.options import HelpFormatter


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="sfp prepare",
        description=__doc__.split("\n\n")[0],
        formatter_class=HelpFormatter,
    )
    parser.add_argument("name", help=", ".join(LAYOUTS))
    parser.add_argument(
        "--source",
        nargs="+",
        type=Path,
        default=[],
        help="the owners' folders, files and archives; only read",
    )
    parser.add_argument(
        "--out", type=Path, default=Path(os.environ.get("SFP_DATA", "data")), help="the data root"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument(
        "--download",
        action="store_true",
        help="fetch first what needs no registration, into OUT/downloads",
    )
    parser.add_argument(
        "--mirror", metavar="URL", help="an address that has the archives, instead of the owners'"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return run_command(command, parser.parse_args(arguments))


def command(args: argparse.Namespace) -> None:
    """Prepare, and say what there is now.

    Raises:
        SFPError: wrong options, sources or folder.
    """
    if args.mirror and not args.download:
        raise SFPError("--mirror says where --download fetches from; add --download.")
    if args.workers < 1:
        raise SFPError(f"--workers is {args.workers}; give at least 1.")
    if args.mirror and urllib.parse.urlparse(args.mirror).scheme not in ("http", "https", "file"):
        raise SFPError(
            f"--mirror is {args.mirror!r}; give an address that begins with https://, http:// or file://."
        )
    root, images = prepare(
        args.name, args.source, args.out, args.workers, args.download, args.mirror
    )
    published = LAYOUTS[args.name].published
    print(
        f"{args.name}: {images} images{f' of {published} published' if published else ''} -> {root}"
    )
    print(f"next: sfp check {args.name} --data {args.out}")
