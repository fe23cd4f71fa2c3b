"""Plot mIoU against milliseconds per image, a point for each finished evaluation.

Milliseconds are an evaluation's seconds over its images: reading, windows, method, decoding and
counting, as the machine was then. Points of one plot should come from one machine that did nothing
else. An evaluation whose pass several datasets shared, or which went on where another had stopped,
is left out: its seconds are not its own. A CSV that --csv wrote is drawn again without them.

python tools/plot_cost.py work_dirs/benchmark --out cost.png --csv cost.csv
python tools/plot_cost.py cost.csv --out cost.png
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfp.errors import SFPError, run_command
from sfp.evaluation.tables import read_results
from sfp.files import save_figure, whole_file
from sfp.options import HelpFormatter

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=HelpFormatter
    )
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="folders that hold results.json, at any depth, or CSV files of --csv",
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
    points = [point for folder in args.folders for point in read_points(folder)]
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


def read_points(place: Path) -> list[Point]:
    """The points of a folder's evaluations, or of a CSV that this program wrote.

    Raises:
        SFPError: a broken ``results.json`` or CSV.
    """
    if place.suffix.lower() != ".csv":
        found = (read_point(path) for path in sorted(place.rglob("results.json")))
        return [point for point in found if point]
    try:
        with place.open(newline="", encoding="utf-8") as file:
            return [
                Point(
                    row["method"],
                    row["detector"],
                    row["where"],
                    float(row["mIoU"]),
                    float(row["milliseconds"]),
                )
                for row in csv.DictReader(file)
            ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SFPError(
            f"{place} is no CSV of this program ({error}); give one of --csv."
        ) from error


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
    """A panel for each place; a point's colour is its detector, its method stands beside it.

    Raises:
        SFPError: a suffix that matplotlib doesn't write.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    places = list(dict.fromkeys(p.place for p in points))
    found = sorted({p.detector for p in points})
    colours = dict(zip(found, [colormaps["tab10"](i % 10) for i in range(len(found))], strict=True))
    figure = Figure(figsize=(11, 6.5 * len(places)), layout="constrained")
    for axis, place in zip(
        figure.subplots(len(places), 1, squeeze=False).flatten(), places, strict=True
    ):
        own = [p for p in points if p.place == place]
        for p in own:
            axis.plot(
                p.milliseconds, p.miou, "o", markersize=10, color=colours[p.detector], alpha=0.55,
                markeredgewidth=0,
            )  # fmt: skip
        axis.set(
            title=f"Accuracy against time: {place}",
            xlabel="milliseconds per image",
            ylabel="mIoU",
            xscale="log",
        )
        axis.margins(0.08)
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
    circles = [
        Line2D([], [], linestyle="", marker="o", markersize=10, color=colours[name], alpha=0.55)
        for name in found
    ]
    labels = [name or "no purification" for name in found]
    title = "outliers found by"
    figure.legend(circles, labels, loc="outside right upper", title=title, fontsize=9)
    figure.draw_without_rendering()  # places the axes, so that names can be measured
    for axis, place in zip(figure.axes, places, strict=True):
        name_points(axis, [p for p in points if p.place == place])
    save_figure(figure, path, "--out")


def name_points(axis: Axes, points: list[Point]) -> None:
    """Write each method beside its point, on the side where it covers no other point or name."""
    from matplotlib.transforms import Bbox

    pixel = axis.figure.dpi / 72
    centres = axis.transData.transform([(p.milliseconds, p.miou) for p in points])
    radius = 6 * pixel
    taken = [Bbox.from_bounds(x - radius, y - radius, 2 * radius, 2 * radius) for x, y in centres]
    sides = [
        ((8, 0), "left", "center"), ((-8, 0), "right", "center"), ((0, 8), "center", "bottom"),
        ((0, -8), "center", "top"), ((6, 6), "left", "bottom"), ((6, -6), "left", "top"),
        ((-6, 6), "right", "bottom"), ((-6, -6), "right", "top"),
    ]  # fmt: skip
    for number, p in enumerate(points):
        others = [box for i, box in enumerate(taken) if i != number]
        tried = []
        for offset, across, along in sides:
            text = axis.annotate(
                p.method, (p.milliseconds, p.miou), offset, textcoords="offset points",
                ha=across, va=along, fontsize=8, parse_math=False,
            )  # fmt: skip
            box = text.get_window_extent()
            hidden = sum(box.overlaps(other) for other in others)
            outside = not (axis.bbox.x0 <= box.x0 and box.x1 <= axis.bbox.x1)
            tried.append((hidden + outside, text, box))
            text.remove()
        _, best, box = min(tried, key=lambda each: each[0])
        axis.add_artist(best)
        taken.append(box)


if __name__ == "__main__":
    sys.exit(main())
