"""Plant outliers into a clean CLIP: who finds them, what they cost each method, and what purification brings back.

The definition stands in sfp/outliers/planting.py, the experiment in sfp/planting_experiment.py. Writes results.json, tables.md,
detection.png and miou_*.png into --out; the same command again measures only what is missing, with further methods, strengths, seeds or
purifiers too.

python tools/plant_outliers.py configs/cfg_toyland.py --images 20
python tools/plant_outliers.py configs/cfg_voc21.py --images 100 --methods SFP SC-CLIP --cfg-options model.clip=ViT-L/14
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sfp.errors import run_command
from sfp.files import only_one, save_figure, sweep, whole_file
from sfp.outliers import list_detectors
from sfp.plugin import require_mmseg


def main() -> int:
    from sfp.methods import list_methods

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("config", help="a config file, such as configs/cfg_toyland.py")
    parser.add_argument("--images", type=int, default=20, help="how many images, spread over the dataset")
    parser.add_argument("--layer", type=int, help="the layer after which outliers are planted; the middle one if not given")
    parser.add_argument("--count", type=int, default=10, help="outliers in each window")
    parser.add_argument(
        "--strengths", nargs="+", type=float, default=[1.0, 2.0, 4.0, 8.0], help="in lengths of a usual token; 0 is always measured"
    )
    parser.add_argument(
        "--selfless", nargs="+", type=float, default=[0.0, 0.25], metavar="LAMBDA", help="how much the outliers look away from themselves"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the places; tables and curves show mean and spread")
    parser.add_argument(
        "--detectors",
        nargs="+",
        default=list_detectors(),
        metavar="NAME[:KEY=VALUE]",
        help="those whose precision and recall are measured",
    )
    parser.add_argument("--methods", nargs="*", default=list_methods(), help="those whose mIoU is measured")
    parser.add_argument(
        "--purifiers",
        nargs="+",
        default=["off", "undone", "L2@next", "SOM@next", "SOM@all", "own"],
        metavar="NAME[:KEY=VALUE][@next|@all]",
        help="off, undone (the planted tokens alone are repaired, at once), own (as the method was published), or a detector after the "
        "next layer, or after all but the last",
    )
    parser.add_argument("--out", type=Path, default=Path("work_dirs/outliers"), help="folder for figures, tables and curves")
    parser.add_argument(
        "--cfg-options", nargs="+", metavar="KEY=VALUE", default=[], help="override config keys, such as model.clip=ViT-L/14"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return run_command(hold_and_measure, parser.parse_args())


def hold_and_measure(args: argparse.Namespace) -> None:
    """The experiment, alone in its folder.

    Raises:
        SFPError: another process is at work there, or what ``experiment`` raises.
    """
    with only_one(args.out, "--out"):
        sweep(args.out)
        experiment(args)


def experiment(args: argparse.Namespace) -> None:
    """Measure what is missing; write figures, tables and curves.

    Raises:
        SFPError: wrong arguments, config or data, or figures of another experiment in the folder.
    """
    require_mmseg()
    from sfp.planting_experiment import Plan, run_plan
    from sfp.planting_figures import detection_figure, miou_figure, tables

    named = {name: getattr(args, name) for name in Plan.__dataclass_fields__ if name not in ("config", "options")}
    plan = Plan(args.config, args.cfg_options, **named)
    store = run_plan(plan, args.out / "results.json")
    text = tables(plan, store)
    with whole_file(args.out / "tables.md") as partial:
        partial.write_text(text)
    print(text)
    save_figure(detection_figure(plan, store), args.out / "detection.png", "--out")
    for own in args.selfless if args.methods else []:
        save_figure(miou_figure(plan, store, own), args.out / f"miou_lambda{own:g}.png", "--out")
    print(f"figures, tables and curves -> {args.out}")


if __name__ == "__main__":
    sys.exit(main())
