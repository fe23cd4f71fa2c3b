"""Measure Toyland's outliers, whose truth is known, and write docs/outliers.md's tables and figure.

    python tools/dev/measure_outliers.py            # writes the page from docs/outliers.json
    python tools/dev/measure_outliers.py --again    # measures both models before
    python tools/dev/measure_outliers.py --check    # fails where the page is not up to date

What they do in each layer, beside Toyland-clean at the same places; who finds them; what is left of
them after each detector's repair and with test-time registers (of the neurons that
tools/find_registers.py found); and, of the figures in docs/toyland.json
(tools/dev/make_method_tables.py), what they cost each method and what SOM brings back.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from make_method_tables import SOM, key_of
from matplotlib.figure import Figure
from outlier_truth import TOKEN_FIGURES, detection_figures, token_figures

from sfp.clip import load_clip
from sfp.clip.clip import FrozenCLIP
from sfp.clip.coherence import nearest_labels
from sfp.clip.loading import BUILT_IN
from sfp.clip.registers import SHIPPED, Registers, read_entries
from sfp.clip.text_bank import TextBank
from sfp.clip.trunk import Hook
from sfp.datasets import toyland
from sfp.datasets.toyland_outliers import patch_std, true_outliers
from sfp.errors import SFPError, run_command
from sfp.evaluation.markdown import markdown_table
from sfp.files import save_figure, whole_file
from sfp.images import resize_short_side
from sfp.methods import list_methods
from sfp.outliers import Purifier, build_detector, list_detectors
from sfp.pipeline.windows import cut, window_grid

ROOT = Path(__file__).parent.parent.parent
PAGE, FIGURES, PICTURE = (
    ROOT / "docs" / name for name in ("outliers.md", "outliers.json", "outliers/detection.png")
)
START, END = "<!-- {}: made by tools/dev/measure_outliers.py -->", "<!-- end -->"
REPAIRED = {key: TOKEN_FIGURES[key] for key in ("length", "cls", "patches", "right", "others")}
WINDOW, STRIDE, SHORT_SIDE = 224, 112, 336


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--split", choices=toyland.SPLITS[1:], default="tune", help="of the scenes")
    parser.add_argument("--scenes", type=int, default=12, help="how many; all their windows count")
    parser.add_argument(
        "--again", action="store_true", help="measure although docs/outliers.json is there"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="measure and write nothing; fail where the page is not up to date",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return run_command(make, parser.parse_args())


def make(args: argparse.Namespace) -> None:
    """Measure, and write or check the page.

    Raises:
        SFPError: no scene, or a page that is not up to date.
    """
    if args.scenes < 1:
        raise SFPError(f"--scenes is {args.scenes}; give at least 1.")
    if not args.check and (args.again or not FIGURES.is_file()):
        figures = measure(args.split, args.scenes)
        with whole_file(FIGURES) as partial:
            partial.write_text(json.dumps(figures, indent=1) + "\n")
        PICTURE.parent.mkdir(exist_ok=True)
        save_figure(detection_figure(figures), PICTURE, "--out")
    if not FIGURES.is_file():
        raise SFPError(f"There is no {FIGURES.name} in docs; run tools/dev/measure_outliers.py.")
    text = PAGE.read_text()
    parts = tables(
        json.loads(FIGURES.read_text()), json.loads((ROOT / "docs/toyland.json").read_text())
    )
    for name, table in parts.items():
        before, rest = text.split(START.format(name))
        text = f"{before}{START.format(name)}\n{table}{END}{rest.split(END, 1)[1]}"
    if args.check and PAGE.read_text() != text:
        raise SFPError("docs/outliers.md is not what tools/dev/measure_outliers.py writes; run it.")
    if not args.check:
        with whole_file(PAGE) as partial:
            partial.write_text(text)


def measure(split: str, scenes: int) -> dict:
    """Every figure of both models."""
    images, labels = windows_of(split, scenes)
    truth = true_outliers(images)
    figures = dict(split=split, scenes=scenes, windows=len(images), models={})
    for name in BUILT_IN:
        clip = load_clip(name, device="cpu")
        text = TextBank(clip, cache_dir=False).encode(list(toyland.CLASSES))
        windows = clip.normalise(images)
        detectors = [build_detector(detector) for detector in list_detectors()]
        figures["models"][name] = dict(
            weights_sha256=clip.fingerprint,
            tokens=token_figures(clip, windows, truth, labels, text),
            detectors=detection_figures(clip, windows, truth, detectors),
            repairs=repair_figures(clip, windows, truth, labels, text),
        )
    grey = patch_std(images)
    figures["grey_std"] = dict(
        outliers=float(grey[truth].median()), others=float(grey[~truth].median())
    )
    return figures


def repair_figures(
    clip: FrozenCLIP,
    windows: torch.Tensor,
    truth: torch.Tensor,
    labels: torch.Tensor,
    text: torch.Tensor,
) -> dict[str, dict[str, float]]:
    """Figures after layer L-1 by what was done before; registers where their neurons are known."""
    trunk = clip.trunk
    layers = range(1, trunk.layers)
    ways: dict[str, tuple[list[Hook], int]] = {"nothing": ([], 0)}
    for name in list_detectors():
        ways[name] = ([Purifier(build_detector(name), layers).hook], 0)
    if clip.fingerprint in read_entries(SHIPPED):
        registers = Registers.of_option(1, clip)
        ways["Registers"] = ([registers.hook], registers.count)
        ways["Registers and SOM"] = ([registers.hook, *ways["SOM"][0]], registers.count)
    found = {}
    for name, (hooks, count) in ways.items():
        figures = token_figures(
            clip, windows, truth, labels, text,
            layers=[trunk.layers - 1], repairs=hooks, registers=count,
        )  # fmt: skip
        found[name] = {key: figures[key][0] for key in REPAIRED}
    return found


def windows_of(split: str, scenes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows as an evaluation cuts them: (B, 3, 224, 224) in 0..255, labels (B, 224, 224)."""
    images, labels = [], []
    for number in range(scenes):
        scene = toyland.make_scene(split, number)
        image = resize_short_side(scene.image, SHORT_SIDE)
        size = tuple(image.shape[1:])
        truth = nearest_labels(torch.from_numpy(scene.labels).long(), size)
        for window in window_grid(*size, WINDOW, STRIDE):
            images.append(cut(image, window))
            labels.append(cut(truth[None], window)[0])
    return torch.stack(images).float(), torch.stack(labels)


def tables(figures: dict, methods: dict) -> dict[str, str]:
    """The page's tables by name."""
    models, layers = figures["models"], (1, 4, 6, 7, 8, 9, 10, 11)
    alike, found, cost = [], [], []
    repaired = [
        [way, *(f"{of[key]:.{1 if key == 'length' else 0}f}" for key in REPAIRED)]
        for way, of in models["Toyland"].get("repairs", {}).items()
    ]
    for key, title in TOKEN_FIGURES.items():
        for name, model in models.items():
            values = model["tokens"][key]
            alike.append(
                [
                    title,
                    name,
                    *(f"{values[layer - 1]:.{1 if key == 'length' else 0}f}" for layer in layers),
                ]
            )
    for detector, of in models["Toyland"]["detectors"].items():
        pairs = [
            f"{of['precision'][layer - 1]:.0f} / {of['recall'][layer - 1]:.0f}"
            for layer in (7, 8, 9, 10, 11)
        ]
        shares = [max(model["detectors"][detector]["flagged"]) for model in models.values()]
        found.append([detector, *pairs, *(f"{share:.0f}" for share in shares)])
    for method in list_methods():
        if key_of("Toyland", f"{method}:{SOM}", None) not in methods:
            continue  # a new one: make_method_tables.py measures it
        row = [method]
        if key_of("Toyland", f"{method}:{SOM}", None) not in methods:
            continue  # not measured yet
        for model in BUILT_IN:
            off, som = (
                methods[key_of(model, f"{method}:{options}", None)]["mIoU"]
                for options in ("purify=False", SOM)
            )
            row += [f"{off:.1f}", f"{som:.1f}", f"{som - off:+.1f}"]
        cost.append(row)
    return {
        "tokens": markdown_table(["", "model", *(f"#layer {layer}" for layer in layers)], alike),
        "detectors": markdown_table(
            [
                "detector",
                *(f"#layer {layer}" for layer in (7, 8, 9, 10, 11)),
                "#most flagged, %",
                "#of Toyland-clean, %",
            ],
            found,
        ),
        "repairs": markdown_table(["repaired by", *(f"#{t}" for t in REPAIRED.values())], repaired),
        "cost": markdown_table(
            [
                "method",
                "#Toyland",
                "#with SOM",
                "#change",
                "#Toyland-clean",
                "#with SOM",
                "#change",
            ],
            cost,
        ),
    }


def detection_figure(figures: dict) -> Figure:
    """Precision, recall and share flagged against layers, a line for each detector."""
    figure = Figure(figsize=(14, 4), layout="constrained")
    detectors = figures["models"]["Toyland"]["detectors"]
    panels = [
        ("precision", "Toyland"),
        ("recall", "Toyland"),
        ("flagged", "Toyland"),
        ("flagged", "Toyland-clean"),
    ]
    for axis, (kind, model) in zip(figure.subplots(1, 4), panels, strict=True):
        for name in detectors:
            values = figures["models"][model]["detectors"][name][kind]
            axis.plot(np.arange(1, 1 + len(values)), values, marker="o", markersize=3, label=name)
        axis.set(
            title=f"{kind}, {model} (%)",
            xlabel="layer",
            ylim=(-3, 103) if kind != "flagged" else (0, 40),
        )
        axis.grid(alpha=0.3)
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9)
    return figure


if __name__ == "__main__":
    sys.exit(main())
