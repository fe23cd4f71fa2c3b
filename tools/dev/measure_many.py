"""Measure pictures per hour against processes, and what a picture costs outside the model.

Toyland, and a ViT-B/16 with made-up weights, on Toyland's scenes as photographs of 640 x 480; on a
CPU each process has its share of the cores. Seconds of the processor (not of the clock) are
measured for reading and writing photographs of 2 and 12 megapixels. What follows for a million
photographs on GPUs is computed from these and from stated assumptions, and marked as computed.

python tools/dev/measure_many.py --processes 1 2 --out docs/many.json --plot docs/pictures/many.png
python tools/dev/measure_many.py --redraw
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from sfp.datasets import toyland
from sfp.errors import run_command
from sfp.files import save_figure, whole_file
from sfp.images import decode_image
from sfp.many.processes import several_processes
from sfp.many.recipe import Recipe, scores_of
from sfp.many.run import run
from sfp.many.sources import Sources
from sfp.options import HelpFormatter
from sfp.result import Segmentation

NAMES = ["sky", "sea", "sand", "grass", "boat", "house", "sun", "tree"]
SIZES = {"2 megapixels": (1632, 1224), "12 megapixels": (4000, 3000)}
# assumptions of what is computed; none of them was measured here
GPUS = 8
GPU_FLOPS = 100e12  # that a large GPU sustains in half precision on a ViT
CORES_PER_GPU = 16
WINDOWS = 6  # of a photograph 4:3 at a short side of 336
WINDOW_FLOPS = 35.1e9  # ViT-B/16 at 224 pixels: 17.6 billion multiplications with additions


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=HelpFormatter
    )
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--pictures", nargs=2, type=int, default=[96, 48], metavar="N")
    parser.add_argument("--method", default="SFP")
    parser.add_argument("--out", type=Path, default=Path("docs/many.json"))
    parser.add_argument("--plot", type=Path, default=Path("docs/pictures/many.png"))
    parser.add_argument(
        "--redraw", action="store_true", help="draw --plot from --out again and measure nothing"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return run_command(measure, parser.parse_args())


def measure(args: argparse.Namespace) -> None:
    """Measure, compute, write and draw."""
    if args.redraw:
        save_figure(draw(json.loads(args.out.read_text())), args.plot, "--plot")
        return
    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "method": args.method,
        "load_before": round(os.getloadavg()[0], 2),
        "models": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for model, count in zip(("Toyland", "ViT-B/16, made up"), args.pictures, strict=True):
            photos = write_photos(root / model.replace("/", ""), count)
            weights = {} if model == "Toyland" else {"pretrained": made_up(root)}
            name = model.split(",")[0]
            found["models"][model] = [
                measure_one(photos, root / f"out{number}", name, args.method, number, weights)
                for number in args.processes
            ]
    found["load_after"] = round(os.getloadavg()[0], 2)
    found["seconds_of_a_core"] = {size: costs(*pixels) for size, pixels in SIZES.items()}
    found["computed"] = compute(found["seconds_of_a_core"])
    with whole_file(args.out) as partial:
        partial.write_text(json.dumps(found, indent=1) + "\n")
    save_figure(draw(found), args.plot, "--plot")
    print(json.dumps(found, indent=1))


def write_photos(folder: Path, count: int) -> Path:
    """Scenes of Toyland as JPEG files of 640 x 480."""
    folder.mkdir()
    for number in range(count):
        scene = Image.fromarray(toyland.make_scene("val", number % 24).image)
        scene.resize((640, 480)).save(folder / f"{number:04d}.jpg", quality=90)
    return folder


def made_up(folder: Path) -> str:
    """A file of a ViT-B/16 with random weights."""
    import open_clip

    file = folder / "made-up.pt"
    if not file.exists():
        torch.manual_seed(0)
        model = open_clip.create_model("ViT-B-16-quickgelu", load_weights=False)
        torch.save(model.state_dict(), file)
    return str(file)


def measure_one(
    photos: Path, out: Path, model: str, method: str, processes: int, weights: dict[str, str]
) -> dict[str, Any]:
    """A whole run of ``sfp segment``'s engine."""
    known = {"quick_gelu": True, "pixel_mean": [0.48, 0.46, 0.41], "pixel_std": [0.27, 0.26, 0.28]}
    options = known if weights else {}
    recipe = Recipe([method], NAMES, None, model, device="cpu", options=options, **weights)
    out = out / model.replace("/", "")
    engine = several_processes(recipe, out, processes)
    summary = run(Sources([photos], out), out, recipe, engine, quiet=True, workers=processes)
    own = summary.as_dict()
    kept = ("segmented", "wall_seconds", "pictures_per_hour", "share_of_time")
    return {"processes": processes, **{key: own[key] for key in kept}}


def costs(width: int, height: int) -> dict[str, float]:
    """Seconds of one core to read a photograph and to write its results."""
    noise = np.random.default_rng(0).integers(0, 256, (height // 40, width // 40, 3), np.uint8)
    photo = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    data = io.BytesIO()
    photo.save(data, "jpeg", quality=90)
    rough = np.random.default_rng(1).integers(0, 5, (height // 60, width // 60), np.uint8)
    labels = Image.fromarray(rough).resize((width, height), Image.Resampling.NEAREST)
    pixels, names = np.asarray(photo), ("a", "b", "c", "d", "e")
    confidence = np.full((height, width), 0.5, np.float32)
    result = Segmentation(np.asarray(labels, np.int64), names, None, pixels, {}, confidence)
    with tempfile.TemporaryDirectory() as folder:
        return {
            "read": _seconds(lambda: decode_image(data.getvalue(), "a photograph")),
            "labels": _seconds(lambda: result.save(Path(folder) / "a.png")),
            "scores": _seconds(lambda: scores_of(result, parts=False)),
            "overlay": _seconds(lambda: result.save(Path(folder) / "a.jpg")),
        }


def _seconds(job: Callable[[], object]) -> float:
    """Of the processor, the least of five: other programs don't count."""
    found = []
    for _ in range(5):
        begun = time.process_time()
        job()
        found.append(time.process_time() - begun)
    return round(min(found), 4)


def compute(seconds: dict[str, dict[str, float]]) -> dict[str, Any]:
    """A million photographs on GPUs, from the assumptions above. Nothing here is measured but the
    seconds of a core.
    """
    model = WINDOWS * WINDOW_FLOPS / GPU_FLOPS
    hours: dict[str, Any] = {
        "assumptions": {
            "gpus": GPUS,
            "flops_of_a_gpu": GPU_FLOPS,
            "cores_for_a_gpu": CORES_PER_GPU,
            "windows_of_a_photograph": WINDOWS,
            "flops_of_a_window": WINDOW_FLOPS,
        },
        "hours_of_the_models": round(1e6 * model / GPUS / 3600, 2),
    }
    for size, own in seconds.items():
        for kind, parts in (
            ("labels and overlays", own),
            ("labels alone", {k: v for k, v in own.items() if k != "overlay"}),
        ):
            cores = sum(parts.values()) / CORES_PER_GPU
            hours[f"hours with photographs of {size}, {kind}"] = round(
                1e6 * max(model, cores) / GPUS / 3600, 2
            )
            hours[f"cores for a GPU that never waits, {size}, {kind}"] = math.ceil(
                sum(parts.values()) / model
            )
    return hours


def draw(found: dict[str, Any]) -> Figure:
    """Pictures per hour against processes, a line for each model."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for model, rows in found["models"].items():
        counts = [row["processes"] for row in rows]
        rates = [row["pictures_per_hour"] for row in rows]
        axes.plot(counts, rates, marker="o", label=model)
        for count, rate in zip(counts, rates, strict=True):
            axes.annotate(
                f"{rate:,.0f}", (count, rate), (0, 7), textcoords="offset points", ha="center"
            )
        axes.plot(counts, [rates[0] * count for count in counts], ":", color="0.6", zorder=0)
    axes.set_yscale("log")
    axes.set_xticks(counts)
    axes.set_xlabel("processes (dotted: in proportion)")
    axes.set_ylabel("pictures per hour")
    axes.margins(x=0.15, y=0.2)
    axes.legend(frameon=False)
    where = f"{found['cores']} cores of an {found['processor']}"
    load = f"load by other programs: {found['load_before']:g}"
    axes.set_title(f"{found['method']} on pictures of 640 x 480\n{where}; {load}", fontsize=9)
    return figure


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":")[1].strip() for line in lines.splitlines() if "model name" in line]
    return names[0].replace("(R)", "") if names else "unknown processor"


if __name__ == "__main__":
    sys.exit(main())
