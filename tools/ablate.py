"""Measure a paper's ablation table through the benchmark grid, beside the published one.

The same command again skips finished rows and goes on with interrupted ones, as the grid does.

python tools/ablate.py sfp-table2 --datasets voc21 ade20k
python tools/ablate.py sfp-questions --cfg-options test_dataloader.dataset.scenes=40
python tools/ablate.py --list
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
import textwrap
from itertools import product
from pathlib import Path

from sfp.commands import benchmark
from sfp.errors import SFPError, run_command
from sfp.files import whole_file
from sfp.options import HelpFormatter, add_config_options
from sfp.plugin import require_mmseg


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=HelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="TABLE", help="the tables, see --list")
    parser.add_argument("--list", action="store_true", help="list the tables and measure nothing")
    parser.add_argument(
        "--datasets",
        nargs="+",
        default=["toyland"],
        metavar="NAME",
        help="names of configs/cfg_<name>.py",
    )
    parser.add_argument(
        "--backbones",
        nargs="+",
        metavar="NAME[:TAG]",
        help="CLIP models; the table's own, on Toyland Toyland, if not given",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("work_dirs/ablations"),
        help="folder for the results, which tables share",
    )
    parser.add_argument("--save", type=Path, help="write the tables to this Markdown file, too")
    parser.add_argument(
        "--devices", nargs="+", metavar="N", help="numbers of GPUs, or cpu; all GPUs if not given"
    )
    add_config_options(parser, "model.prompts=photo")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    args.failed = False
    return run_command(ablate, args) or int(args.failed)


def ablate(args: argparse.Namespace) -> None:
    """Measure what is missing of each table and print it.

    Raises:
        SFPError: no such table, or a wrong argument of the grid.
    """
    from sfp.experiments.ablations import (
        ABLATIONS,
        ablation_table,
        equal_signs,
        find_ablation,
        missing_rows,
    )

    if args.list:
        for name, ablation in ABLATIONS.items():
            can = sum(row.method is not None for row in ablation.rows)
            print(f"{name:16} {can:2d} of {len(ablation.rows):2d} rows  {ablation.title}")
        return
    if not args.names:
        raise SFPError(f"No table is named; name one of: {', '.join(ABLATIONS)}.")
    tables = [find_ablation(name) for name in args.names]
    require_mmseg()
    texts, signs = [], []
    for name, ablation in zip(args.names, tables, strict=True):
        where = f"{ablation.paper} {ablation.table}: " if ablation.table else ""
        parts = [f"## {name}\n", f"{where}{ablation.title}\n"]
        toy, real = (
            [d for d in args.datasets if (d == "toyland") is kind] for kind in (True, False)
        )
        for datasets, own in ((toy, ["Toyland"]), (real, list(ablation.backbones))):
            backbones = args.backbones or own
            measured = measure(args, name, ablation, backbones, datasets) if datasets else {}
            parts += [
                f"{b}\n\n{ablation_table(ablation, b, datasets, measured)}"
                for b in backbones
                if datasets
            ]
            counted = [
                equal_signs(ablation, b, dataset, measured)
                for b in backbones
                for dataset in datasets
            ]
            signs += [(name, *pair) for pair in counted if pair[1]]
        parts.append(missing_rows(ablation))
        texts.append("\n".join(part for part in parts if part))
        print(texts[-1])
    if signs:
        each = ", ".join(f"{name} {same} of {all_}" for name, same, all_ in signs)
        texts.append(
            f"Changes with the paper's sign: {sum(s for _, s, _ in signs)} of "
            f"{sum(a for *_, a in signs)} ({each}).\n"
        )
        print(texts[-1])
    if args.save:
        asked = shlex.join(["python", "tools/ablate.py", *args.names, "--datasets", *args.datasets])
        asked += f" --cfg-options {shlex.join(args.cfg_options)}" if args.cfg_options else ""
        command = "\n".join(textwrap.wrap(asked, 100, break_on_hyphens=False))
        with whole_file(args.save) as partial:
            partial.write_text(
                f"# Ablation tables\n\nMade by\n\n```text\n{command}\n```\n\n" + "\n".join(texts)
            )


def measure(
    args: argparse.Namespace, name: str, ablation, backbones: list[str], datasets: list[str]
) -> dict:
    """mIoU by (method, backbone, dataset) of a table's rows; None where an evaluation failed."""
    from sfp.evaluation.grid import Cell
    from sfp.experiments.ablations import read_miou

    out, methods = args.out / ablation.settings, ablation.methods(datasets[0])
    if not methods:
        return {}
    asked = ["--methods", *methods, "--backbones", *backbones, "--datasets", *datasets]
    asked += ["--out", str(out), "--settings", ablation.settings]
    asked += ["--devices", *args.devices] if args.devices else []
    asked += ["--cfg-options", *args.cfg_options] if args.cfg_options else []
    asked += ["--debug"] if args.debug else []
    print(f"{name}: {len(methods)} rows on {', '.join(datasets)}", file=sys.stderr)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        code = benchmark.main(asked)  # its table is of the grid, not of the paper
    if code == 130:
        raise KeyboardInterrupt
    args.failed |= code != 0
    places = product(methods, backbones, datasets)
    return {place: read_miou(Cell(*place, (), str(out)).folder) for place in places}


if __name__ == "__main__":
    sys.exit(main())
