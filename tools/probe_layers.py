"""Probe each layer of a CLIP on labelled images: coherence, alignment, entropy, outliers.

What each probe is stands in sfp/experiments/probes.py. The layer with the most coherent keys is
CLIPSeg's attention_layer; "components" is the mean number of components that CLIPSeg's epsilon
makes of a window's patches: with one, its G changes nothing.

python tools/probe_layers.py configs/cfg_toyland.py --images 40
python tools/probe_layers.py configs/cfg_ade20k.py --pairs 5000 --plot probe.png
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Sequence
from itertools import combinations, cycle
from pathlib import Path

import numpy as np
import torch

from sfp.errors import SFPError, run_command
from sfp.evaluation.markdown import markdown_table
from sfp.files import save_figure, whole_file
from sfp.options import HelpFormatter, add_config_options
from sfp.plugin import require_mmseg
from sfp.progress import progress

READ = ("components", "alignment", "accuracy", "entropy", "cls entropy")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=HelpFormatter
    )
    parser.add_argument("config", help="a config file, such as configs/cfg_toyland.py")
    parser.add_argument(
        "--images", type=int, default=200, help="how many images, spread over the dataset"
    )
    parser.add_argument(
        "--pairs",
        type=int,
        help="patch pairs of each window that the coherence is measured on; all if not given",
    )
    parser.add_argument(
        "--epsilon",
        type=float,
        default=0.75,
        help="CLIPSeg's epsilon, for the number of components",
    )
    parser.add_argument(
        "--detectors",
        nargs="*",
        default=["SOM", "L2", "LOF"],
        help="those whose outliers are counted and compared",
    )
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--save", type=Path, help="write the tables to this Markdown file, too")
    parser.add_argument(
        "--csv", type=Path, help="write the figures as CSV, one line for each layer and probe"
    )
    parser.add_argument(
        "--plot",
        type=Path,
        help="draw the figures as PNG, or in another format that matplotlib writes",
    )
    add_config_options(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return run_command(probe, parser.parse_args())


def probe(args: argparse.Namespace) -> None:
    """Print the tables of layers, and the layer whose keys are the most coherent.

    Raises:
        SFPError: wrong arguments, config or data, or no image with patches of two classes.
    """
    require_mmseg()
    from mmseg.registry import MODELS

    from sfp.clip.coherence import FEATURES, nearest_labels
    from sfp.evaluation.config import building, read_config
    from sfp.evaluation.dataset import build_dataset, check_names, spread_over
    from sfp.evaluation.metric import check_metric
    from sfp.experiments.probes import probe_layers
    from sfp.outliers import build_detector
    from sfp.pipeline.windows import cut, window_grid

    if args.images < 1 or (args.pairs is not None and args.pairs < 2):
        raise SFPError(
            f"--images is {args.images}, --pairs {args.pairs}; give at least 1 image and 2 pairs."
        )
    if not math.isfinite(args.epsilon):
        raise SFPError(f"--epsilon is {args.epsilon}; give a finite number such as 0.75.")
    if len(set(args.detectors)) < len(args.detectors):
        raise SFPError(f"--detectors {' '.join(args.detectors)} names one twice; name each once.")
    detectors = [build_detector(name) for name in args.detectors]
    cfg = read_config(args.config, args.cfg_options)
    dataset = build_dataset(cfg)
    check_metric(cfg, dataset)
    with building("The model"):
        model = MODELS.build(cfg.model)
    check_names(model.vocabulary, dataset.metainfo["classes"], type(dataset).__name__)
    clip, text, protocol = model.frozen, model.task.text, model.task.protocol
    chosen = spread_over(dataset, args.images)
    found: dict[tuple[str, int], list[float]] = {}
    for index in progress(chosen, desc="probing", unit="image"):
        item = dataset[index]
        image = clip.normalise(item["inputs"].flip(0))  # mmseg loads BGR
        size = tuple(image.shape[1:])
        labels = nearest_labels(item["data_samples"].gt_sem_seg.data[0], size)
        grid = window_grid(*size, protocol.window, protocol.stride)
        windows, truth = (
            torch.stack([cut(whole, window) for window in grid]) for whole in (image, labels[None])
        )
        figures = probe_layers(
            clip,
            windows,
            truth[:, 0],
            text.vectors,
            text.class_of_query,
            detectors=detectors,
            pairs=args.pairs,
            epsilon=args.epsilon,
            ignore=dataset.ignore_index,
        )
        for key, values in figures.items():
            found.setdefault(key, []).extend(values)
    means = {key: float(np.mean(values)) for key, values in found.items() if values}
    if ("k", 1) not in means:
        raise SFPError("No window has patches of two classes; probe more images with --images.")
    layers = range(1, clip.trunk.layers + 1)
    pairs = [f"{one} & {other}" for one, other in combinations(args.detectors, 2)]
    tables = [
        (
            f"{clip.name}, {len(chosen)} images: mean AUROC of patch-pair similarity as a "
            "classifier of 'same class'",
            FEATURES,
            "{:.4f}",
        ),
        (
            "components of CLIPSeg's graph; alignment of attention-free values with the text; "
            "entropy of attention (1: uniform)",
            READ,
            "{:.3f}",
        ),
    ]
    if args.detectors:
        title = "share of the patches that a detector flags, and overlap of two detectors"
        tables.append((title, (*args.detectors, *pairs), "{:.3f}"))
    for title, names, form in tables:
        print(title)
        print_table(cells_of(means, layers, names, form), names)
    best = max(range(1, clip.trunk.layers), key=lambda layer: means["k", layer])
    print(f"model.attention_layer={best}  (keys, AUROC {means['k', best]:.4f})")

    def of(names) -> dict[str, dict[str, float | None]]:
        return {name: {str(layer): means.get((name, layer)) for layer in layers} for name in names}

    figures = dict(
        model=clip.name,
        weights_sha256=clip.fingerprint,
        images=len(chosen),
        pairs=args.pairs,
        auroc=of(FEATURES),
    )
    figures.update(
        {name.replace(" ", "_"): values for name, values in of(READ).items()},
        outliers=of(args.detectors),
        overlap=of(pairs),
    )
    if args.out:
        with whole_file(args.out) as partial:
            partial.write_text(json.dumps(figures, indent=2) + "\n")
    if args.save:
        parts = [f"# Probes of {clip.name}'s layers\n\nMade by `tools/probe_layers.py`.\n"]
        for title, names, form in tables:
            body = cells_of(means, layers, names, form)
            heads = [f"#{name}" for name in ("layer", *names)]
            parts.append(f"{title}\n\n{markdown_table(heads, body)}")
        with whole_file(args.save) as partial:
            partial.write_text("\n".join(parts))
    if args.csv:
        with whole_file(args.csv) as partial, partial.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["layer", "probe", "mean", "windows"])
            writer.writerows(
                [layer, name, f"{mean:.6f}", len(found[name, layer])]
                for (name, layer), mean in sorted(means.items())
            )
    if args.plot:
        draw(args.plot, figures, layers)


def cells_of(
    means: dict[tuple[str, int], float], layers: range, names: Sequence[str], form: str
) -> list[list[str]]:
    """A line for each layer: its number and the probes; a dash where no window has a figure."""
    return [
        [str(layer)]
        + [form.format(means[name, layer]) if (name, layer) in means else "-" for name in names]
        for layer in layers
    ]


def print_table(body: list[list[str]], names: Sequence[str]) -> None:
    """Layers down, probes across."""
    width = max(9, *(len(name) + 2 for name in names))
    print("layer " + "".join(f"{name:>{width}}" for name in names))
    for layer, *cells in body:
        print(f"{layer:>5} " + "".join(f"{cell:>{width}}" for cell in cells))


def draw(path: Path, figures: dict, layers: range) -> None:
    """The figures against the layers, a panel for each kind.

    Raises:
        SFPError: a suffix that matplotlib doesn't write.
    """
    from matplotlib.figure import Figure

    panels = {
        "Similarity tells 'same class' (AUROC)": figures["auroc"],
        "Patches read by the text": {
            "share nearest to their own class": figures["accuracy"],
            "own class's cosine less the others'": figures["alignment"],
        },
        "Components of CLIPSeg's graph in a window": {"components": figures["components"]},
        "Entropy of attention (1: uniform)": {
            "patches": figures["entropy"],
            "class token": figures["cls_entropy"],
        },
        "Share of the patches flagged": figures["outliers"],
        "Overlap of what two detectors flag": figures["overlap"],
    }
    figure = Figure(figsize=(14, 7.2), layout="constrained")
    for axis, (title, lines) in zip(figure.subplots(2, 3).flatten(), panels.items(), strict=True):
        for (name, values), style in zip(
            lines.items(), cycle(("-", "--", ":", "-."))
        ):  # equal lines still show
            points = [np.nan if value is None else value for value in values.values()]
            axis.plot(list(layers), points, marker=".", linestyle=style, linewidth=1.8, label=name)
        axis.set(title=title, xlabel="layer", xticks=list(layers)[:: max(1, len(layers) // 12)])
        axis.grid(alpha=0.3)
        if len(lines) > 1:
            axis.legend(fontsize=9)
    figure.suptitle(f"{figures['model']}, {figures['images']} images")
    save_figure(figure, path, "--plot", dpi=100)


if __name__ == "__main__":
    sys.exit(main())
