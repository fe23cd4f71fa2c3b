"""Plot accuracy against cost from finished evaluations: mIoU over milliseconds per image, a point for each.

Milliseconds are an evaluation's seconds over its images: reading, windows, method, decoding and counting, as the machine was then. Points
of one plot should come from one machine that did nothing else. An evaluation whose pass several datasets shared is left out.

python tools/plot_cost.py work_dirs/benchmark --out cost.png
"""

from __future__ import annotations

import argparse
import csv
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfp.errors import SFPError, run_command
from sfp.files import save_figure, whole_file
from sfp.result_table import read_results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="folders that hold results.json, at any depth")
    parser.add_argument("--out", type=Path, default=Path("cost.png"), help="the plot")
    parser.add_argument("--csv", type=Path, help="write the points as CSV, too")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return run_command(plot, parser.parse_args())


@dataclass(frozen=True)
class Point:
    """An evaluation: its method with changed options, where it ran, its mIoU in percent and milliseconds per image."""

    method: str
    detector: str
    place: str
    miou: float
    milliseconds: float


def plot(args: argparse.Namespace) -> None:
    """Read the points, print them, draw them.

    Raises:
        SFPError: no results, broken ones, or a suffix that matplotlib doesn't write.
    """
    points = [point for folder in args.folders for path in sorted(folder.rglob("results.json")) if (point := read_point(path))]
    if not points:
        raise SFPError(
            f"There is no results.json with a pass of its own in {', '.join(map(str, args.folders))}; give an evaluation's folder."
        )
    points.sort(key=lambda point: (point.place, point.milliseconds))
    for point in points:
        print(
            f"{point.milliseconds:8.1f} ms  {point.miou:5.1f} mIoU  {point.method} ({point.detector or 'no purification'}), {point.place}"
        )
    if args.csv:
        with whole_file(args.csv) as partial, partial.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["method", "detector", "where", "mIoU", "milliseconds"])
            writer.writerows([p.method, p.detector, p.place, f"{p.miou:.4f}", f"{p.milliseconds:.2f}"] for p in points)
    draw(points, args.out)


def read_point(path: Path) -> Point | None:
    """The point of an evaluation; None where its seconds are not its own.

    Raises:
        SFPError: a broken ``results.json``.
    """

    def point(result: dict[str, Any]) -> Point | None:
        if result["shared_with"]:
            return None
        changed = {key: value for key, value in result["changed_options"].items() if key not in ("purify", "pm")}
        name = ", ".join([result["method"], *(f"{key}={value}" for key, value in sorted(changed.items()))])
        place = f"{result['backbone']}, {result['dataset']}, {result['precision']} on {result['device']}"
        return Point(name, result["pm"] or "", place, float(result["mIoU"]), 1000 * result["seconds"] / result["images"])

    return read_results(path, point)


def draw(points: list[Point], path: Path) -> None:
    """A panel for each place, a colour for each detector.

    Raises:
        SFPError: a suffix that matplotlib doesn't write.
    """
    from matplotlib.figure import Figure

    places, detectors = list(dict.fromkeys(p.place for p in points)), sorted({p.detector for p in points})
    figure = Figure(figsize=(9, 5.5 * len(places)), layout="constrained")
    for axis, place in zip(figure.subplots(len(places), 1, squeeze=False).flatten(), places, strict=True):
        for number, detector in enumerate(detectors):
            own = [p for p in points if (p.place, p.detector) == (place, detector)]
            if own:
                axis.scatter([p.milliseconds for p in own], [p.miou for p in own], color=f"C{number}", label=detector or "no purification")
            for p in own:
                axis.annotate(p.method, (p.milliseconds, p.miou), xytext=(4, 3), textcoords="offset points", fontsize=8)
        axis.set(title=place, xlabel="milliseconds per image", ylabel="mIoU", xscale="log")
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=9)
    save_figure(figure, path, "--out")


if __name__ == "__main__":
    sys.exit(main())
