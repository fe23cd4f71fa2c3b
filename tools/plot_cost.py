"""Plot mIoU against milliseconds per image, a point for each finished evaluation.

Milliseconds are an evaluation's seconds over its images: reading, windows, method, decoding and
counting, as the machine was then. Points of one plot should come from one machine that did nothing
else. An evaluation whose pass several datasets shared, or which went on where another had stopped,
is left out: its seconds are not its own.

python tools/plot_cost.py work_dirs/benchmark --out cost.png
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfp.errors import SFPError, run_command
from sfp.evaluation.tables import read_results
from sfp.files import save_figure, whole_file


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, help="folders that hold results.json, at any depth"
    )
    parser.add_argument("--out", type=Path, default=Path("cost.png"), help="the plot")
    parser.add_argument("--csv", type=Path, help="write the points as CSV, too")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return run_command(plot, parser.parse_args())


@dataclass(frozen=True)
class Point:
    """An evaluation: method with changed options, where it ran, mIoU in percent, cost an image."""

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
    points = [
        point
        for folder in args.folders
        for path in sorted(folder.rglob("results.json"))
        if (point := read_point(path))
    ]
    if not points:
        raise SFPError(
            "There is no results.json of a whole pass of its own in "
            f"{', '.join(map(str, args.folders))}; give an evaluation's folder."
        )
    points.sort(key=lambda point: (point.place, point.milliseconds))
    for point in points:
        print(
            f"{point.milliseconds:8.1f} ms  {point.miou:5.1f} mIoU  {point.method} "
            f"({point.detector or 'no purification'}), {point.place}"
        )
    if args.csv:
        with whole_file(args.csv) as partial, partial.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["method", "detector", "where", "mIoU", "milliseconds"])
            writer.writerows(
                [p.method, p.detector, p.place, f"{p.miou:.4f}", f"{p.milliseconds:.2f}"]
                for p in points
            )
    draw(points, args.out)


def read_point(path: Path) -> Point | None:
    """The point of an evaluation; None where its seconds are not its own.

    Raises:
        SFPError: a broken ``results.json``.
    """

    def point(result: dict[str, Any]) -> Point | None:
        if result["shared_with"] or result["images_resumed"]:
            return None
        changed = sorted(result["changed_options"].items())
        options = [f"{key}={value}" for key, value in changed if key not in ("purify", "pm")]
        name = ", ".join([result["method"], *options])
        place = "{backbone}, {dataset}, {precision} on {device}".format(**result)
        if not 0 < result["seconds"] < math.inf:
            raise ValueError(f"seconds is {result['seconds']!r}")
        return Point(
            name,
            result["pm"] or "",
            place,
            result["mIoU"],
            1000 * result["seconds"] / result["images"],
        )

    return read_results(path, point)


def draw(points: list[Point], path: Path) -> None:
    """A panel for each place; a point's colour is its detector, the number in it its method.

    Raises:
        SFPError: a suffix that matplotlib doesn't write.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    places, methods = (
        list(dict.fromkeys(p.place for p in points)),
        sorted({p.method for p in points}),
    )
    found = sorted({p.detector for p in points})
    colours = dict(zip(found, [colormaps["tab10"](i % 10) for i in range(len(found))], strict=True))
    figure = Figure(
        figsize=(11, max(5.5 * len(places), 0.24 * (len(methods) + len(found)) + 1)),
        layout="constrained",
    )
    for axis, place in zip(
        figure.subplots(len(places), 1, squeeze=False).flatten(), places, strict=True
    ):
        for p in (p for p in points if p.place == place):
            axis.plot(
                p.milliseconds,
                p.miou,
                "o",
                markersize=13,
                color=colours[p.detector],
                alpha=0.55,
                markeredgewidth=0,
            )
            axis.annotate(
                str(1 + methods.index(p.method)),
                (p.milliseconds, p.miou),
                ha="center",
                va="center",
                fontsize=8,
            )
        axis.set(title=place, xlabel="milliseconds per image", ylabel="mIoU", xscale="log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
    numbers = [
        Line2D([], [], linestyle="", marker=f"${i}$", color="black", markersize=4 + 3 * len(str(i)))
        for i in range(1, len(methods) + 1)
    ]
    circles = [
        Line2D([], [], linestyle="", marker="o", markersize=11, color=colours[name], alpha=0.55)
        for name in found
    ]
    labels = [*methods, *(name or "no purification" for name in found)]
    figure.legend([*numbers, *circles], labels, loc="outside right upper", fontsize=9)
    save_figure(figure, path, "--out")


if __name__ == "__main__":
    sys.exit(main())
