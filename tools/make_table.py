"""Turn a folder of results into the papers' table: measured, published, difference, and what in the
protocol differs.

python tools/make_table.py work_dirs/benchmark
python tools/make_table.py work_dirs/benchmark --format latex --paper SC-CLIP --out table.tex
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sfp.errors import SFPError, run_command
from sfp.files import whole_file
from sfp.options import HelpFormatter
from sfp.plugin import require_mmseg


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=HelpFormatter
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, help="folders that hold results.json, at any depth"
    )
    parser.add_argument("--format", choices=["markdown", "csv", "latex"], default="markdown")
    parser.add_argument(
        "--paper",
        help="whose published numbers: SFP, SC-CLIP, CLIPSeg; each method's own paper if not given",
    )
    parser.add_argument(
        "--peers",
        action="store_true",
        help="with the published rows of methods that aren't run here, such as trained ones",
    )
    parser.add_argument(
        "--out", type=Path, help="write the table to this file instead of printing it"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return run_command(make, parser.parse_args())


def make(args: argparse.Namespace) -> None:
    """Print or write the table.

    Raises:
        SFPError: no results, broken ones, or two for one cell.
    """
    require_mmseg()
    from sfp.evaluation.tables import as_csv, collect, latex, markdown, peers

    found = [
        path.parent for folder in args.folders for path in sorted(folder.rglob("results.json"))
    ]
    if not found:
        raise SFPError(
            f"There is no results.json in {', '.join(map(str, args.folders))}; give the "
            f"--work-dir or --out of an evaluation."
        )
    entries = collect(found, args.paper)
    if args.peers:
        entries += peers(entries, args.paper)
    text = {"markdown": markdown, "csv": as_csv, "latex": latex}[args.format](entries)
    if args.out is None:
        print(text, end="")
        return
    try:
        with whole_file(args.out) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SFPError(
            f"{args.out} can't be written ({error}); choose another file with --out."
        ) from error


if __name__ == "__main__":
    sys.exit(main())
