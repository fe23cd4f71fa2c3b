"""Measure Toyland's outliers, whose truth is known, and write the tables and the figure of
docs/outliers.md: short ones into the page, long ones into docs/outliers/tokens.md and cost.md.

    python tools/dev/measure_outliers.py            # writes them from docs/outliers.json
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
import textwrap
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from make_method_tables import SOM, key_of
from matplotlib.figure import Figure
from outlier_truth import TOKEN_FIGURES, detection_figures, token_figures

from sfp.clip import load_clip
from sfp.clip.built_in import BUILT_IN
from sfp.clip.clip import FrozenCLIP
from sfp.clip.coherence import nearest_labels
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
TOKENS, COST = (ROOT / "docs/outliers" / name for name in ("tokens.md", "cost.md"))
START, END = "<!-- {}: made by tools/dev/measure_outliers.py -->", "<!-- end -->"
REPAIRED = {key: TOKEN_FIGURES[key] for key in ("length", "cls", "patches", "right", "others")}
WINDOW, STRIDE, SHORT_SIDE = 224, 112, 336


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
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
    if not FIGURES.is_file():
        raise SFPError(f"There is no {FIGURES.name} in docs; run tools/dev/measure_outliers.py.")
    figures = json.loads(FIGURES.read_text())
    costs = cost_rows(json.loads((ROOT / "docs/toyland.json").read_text()))
    text = PAGE.read_text()
    for name, part in parts_of_page(figures, costs).items():
        before, rest = text.split(START.format(name))
        text = f"{before}{START.format(name)}\n{part}{END}{rest.split(END, 1)[1]}"
    texts = {PAGE: text, TOKENS: tokens_page(figures), COST: cost_page(costs)}
    for path, text in texts.items():
        if args.check and (not path.is_file() or path.read_text() != text):
            raise SFPError(
                f"{path.relative_to(ROOT)} is not what tools/dev/measure_outliers.py writes; "
                "run it."
            )
        if not args.check:
            path.parent.mkdir(exist_ok=True)
            with whole_file(path) as partial:
                partial.write_text(text)
    if not args.check:
        save_figure(detection_figure(figures), PICTURE, "--out")


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


def shown(key: str, value: float) -> str:
    """One of ``TOKEN_FIGURES`` as it is printed."""
    return f"{value:.{1 if key == 'length' else 0}f}"


def parts_of_page(figures: dict, costs: dict[str, list[tuple[float, float]]]) -> dict[str, str]:
    """What stands between the page's marks, by name."""
    models = figures["models"]
    repaired = [
        [way, *(shown(key, of[key]) for key in REPAIRED)]
        for way, of in models["Toyland"]["repairs"].items()
    ]
    after_11 = [
        [title, *(shown(key, model["tokens"][key][10]) for model in models.values())]
        for key, title in TOKEN_FIGURES.items()
    ]
    found = []
    for detector, of in models["Toyland"]["detectors"].items():
        pairs = [
            f"{of['precision'][layer - 1]:.0f} / {of['recall'][layer - 1]:.0f}"
            for layer in (7, 8, 9, 10, 11)
        ]
        shares = [max(model["detectors"][detector]["flagged"]) for model in models.values()]
        found.append([detector, *pairs, *(f"{share:.0f}" for share in shares)])
    layers = (f"#layer {layer}" for layer in (7, 8, 9, 10, 11))
    return {
        "summary": summary(costs),
        "tokens": markdown_table(["after layer 11", *(f"#{name}" for name in models)], after_11),
        "detectors": markdown_table(
            ["detector", *layers, "#most flagged, %", "#of Toyland-clean, %"], found
        ),
        "repairs": markdown_table(["repaired by", *(f"#{t}" for t in REPAIRED.values())], repaired),
    }


def cost_rows(methods: dict) -> dict[str, list[tuple[float, float]]]:
    """By method and for each model mIoU without purification and with SOM.

    A method without figures is left out: make_method_tables.py measures it.
    """
    found = {}
    for method in list_methods():
        if key_of("Toyland", f"{method}:{SOM}", None) in methods:
            found[method] = [
                tuple(
                    methods[key_of(model, f"{method}:{options}", None)]["mIoU"]
                    for options in ("purify=False", SOM)
                )
                for model in BUILT_IN
            ]
    return found


def summary(costs: dict[str, list[tuple[float, float]]]) -> str:
    """What SOM changes, in a sentence for each model."""
    changes = {name: round(som - off, 1) for name, ((off, som), _) in costs.items()}
    up = [change for change in changes.values() if change > 0]
    same = [name for name, change in changes.items() if not change]
    down = sorted((change, name) for name, change in changes.items() if change < 0)
    kept = f"changes {len(same)} by less than 0.05 ({', '.join(same)}), " if same else ""
    lost = ", ".join(f"{name} {-change}" for change, name in down)
    clean = max(abs(som - off) for _, (off, som) in costs.values())
    changed = f" by more than {clean:.1f}" if clean >= 0.05 else ""
    text = (
        f"SOM after layers 1 to 11 lifts {len(up)} of {len(changes)} methods by {min(up)} to "
        f"{max(up)} points, {kept}and costs {len(down)} ({lost}). On Toyland-clean, the twin "
        f"without outliers, no figure changes{changed}."
    )
    return textwrap.fill(text, 100) + "\n"


def tokens_page(figures: dict) -> str:
    """docs/outliers/tokens.md: what outliers do in each layer of both models."""
    models = figures["models"]
    count = len(next(iter(models.values()))["tokens"]["length"]) - 1
    body = [
        [title, name, *(shown(key, value) for value in model["tokens"][key][:count])]
        for key, title in TOKEN_FIGURES.items()
        for name, model in models.items()
    ]
    heads = (f"#layer {layer}" for layer in range(1, count + 1))
    return f"""# What outliers do in each layer

Made by `tools/dev/measure_outliers.py`; [outliers.md](../outliers.md) says what the rows mean and
what follows. {figures["scenes"]} scenes of the split "{figures["split"]}",
{figures["windows"]} windows. In Toyland-clean the same places are measured, which are no outliers
there.

{markdown_table(["", "model", *heads], body)}"""


def cost_page(costs: dict[str, list[tuple[float, float]]]) -> str:
    """docs/outliers/cost.md: what SOM brings each method."""
    body = []
    for method, pairs in costs.items():
        row = [method]
        for off, som in pairs:
            row += [f"{off:.1f}", f"{som:.1f}", f"{som - off:+.1f}"]
        body.append(row)
    heads = [head for model in BUILT_IN for head in (f"#{model}", "#with SOM", "#change")]
    return f"""# What SOM brings each method

Made by `tools/dev/measure_outliers.py` from `docs/toyland.json`; [outliers.md](../outliers.md) says
what follows. mIoU on 120 held-out scenes without purification and with SOM after layers 1 to 11,
each method otherwise as published. Toyland-clean says what SOM costs where there is nothing to
repair.

{markdown_table(["method", *heads], body)}"""


def detection_figure(figures: dict) -> Figure:
    """Precision, recall and share flagged against layers, a line for each detector."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    panels = {
        ("precision", "Toyland"): "Precision: flagged tokens that are outliers",
        ("recall", "Toyland"): "Recall: outliers that are flagged",
        ("flagged", "Toyland"): "Tokens flagged, of all",
        ("flagged", "Toyland-clean"): "Tokens flagged on Toyland-clean, which has no outliers",
    }
    marks = ("o", "s", "^", "v", "D", "x", "P")  # lines that lie on each other still show
    for axis, ((kind, model), title) in zip(
        figure.subplots(2, 2).flat, panels.items(), strict=True
    ):
        for (name, of), mark in zip(figures["models"][model]["detectors"].items(), cycle(marks)):
            layers = np.arange(1, 1 + len(of[kind]))
            axis.plot(layers, of[kind], marker=mark, markersize=5, fillstyle="none", label=name)
        alike: dict[tuple[float, ...], list[str]] = {}
        for name, of in figures["models"][model]["detectors"].items():
            alike.setdefault(tuple(of[kind]), []).append(name)
        for values, names in alike.items():
            if len(names) > 1:  # one line hides the others
                axis.annotate(", ".join(names), (1, values[0] + 0.5), fontsize=9)
        axis.set(title=title, xlabel="layer", ylabel="percent", xticks=layers)
        axis.set_ylim((-3, 103) if kind != "flagged" else (-1, 27))
        axis.grid(alpha=0.3)
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9)
    return figure


if __name__ == "__main__":
    sys.exit(main())
