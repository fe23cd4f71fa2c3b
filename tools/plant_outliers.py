"""Plant outliers into a clean CLIP: who finds them, what they cost each method, and what purification brings back.

The definition stands in sfp/outliers/planting.py. Writes results.json, tables.md, detection.png and miou_*.png into --out; the same
command again measures only what is missing, with further methods, strengths or purifiers too.

python tools/plant_outliers.py configs/cfg_toyland.py --images 20
python tools/plant_outliers.py configs/cfg_voc21.py --images 100 --methods SFP SC-CLIP --cfg-options model.clip=ViT-L/14
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from tqdm import tqdm

from sfp.clip.trunk import Attention, Hook, LayerState
from sfp.errors import SFPError, run_command, unknown_choice
from sfp.files import only_one, save_figure, sweep, whole_file
from sfp.markdown import markdown_table
from sfp.options import parse_spec
from sfp.outliers import Detector, build_detector, list_detectors
from sfp.outliers.planting import PlantedTrunk, Planting, drawing_direction, plant
from sfp.plugin import require_mmseg
from sfp.result_table import read_results

PURIFIERS = ("off", "own", "undone")


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
    parser.add_argument("--seed", type=int, default=0, help="of the places")
    parser.add_argument("--detectors", nargs="+", default=list_detectors(), help="those whose precision and recall are measured")
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


@dataclass(frozen=True)
class Picture:
    """An image as the pipeline takes it, (3, H, W) normalised, and its labels (H, W) at their own size."""

    image: Tensor
    labels: Tensor
    name: str


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
    from sfp.clip import load_clip
    from sfp.config import check_dataset, read_config
    from sfp.methods import METHODS
    from sfp.pipeline.windows import cut, window_grid

    detectors = [build_detector(name) for name in args.detectors]
    for name in args.methods:
        METHODS.get(name)
    for spec in args.purifiers:
        read_purifier(spec)
    if args.images < 1 or any(strength <= 0 for strength in args.strengths):
        raise SFPError(f"--images is {args.images}, --strengths {args.strengths}; give at least 1 image and strengths above 0.")
    cfg = read_config(args.config, args.cfg_options)
    check_dataset(cfg)
    clip = load_clip(cfg.model.clip, cfg.model.pretrained, precision=cfg.model.get("precision"))
    layer = args.layer or clip.trunk.layers // 2
    pictures, classes = read_pictures(cfg, clip, args.images)
    middle = [window_grid(*p.image.shape[1:], cfg.model.window, cfg.model.stride) for p in pictures]
    windows = [cut(p.image, grid[len(grid) // 2])[None].to(clip.device) for p, grid in zip(pictures, middle, strict=True)]
    directions = {own: drawing_direction(clip.trunk, torch.cat(windows), layer, own) for own in args.selfless}
    planting = Planting(layer, args.count, 0.0, args.seed)
    card = dict(
        model=clip.name, weights_sha256=clip.fingerprint, dataset=type_of(cfg), images=len(pictures), layer=layer, count=args.count,
        seed=args.seed, patches=int(np.prod(clip.trunk.grid_of(*windows[0].shape[2:]))), layers=clip.trunk.layers, options=args.cfg_options,
    )  # fmt: skip
    store = Store(args.out / "results.json", card)
    wanted = [(own, strength) for own in args.selfless for strength in (0.0, *args.strengths)]
    for own, strength in tqdm(wanted, desc="detectors", unit="planting"):
        key = detection_key(own, strength)
        known = store.detection.get(key, {})
        missing = [detector for detector in detectors if detector.name not in known]
        if missing:
            trunk = PlantedTrunk(clip.trunk, replace(planting, strength=strength), directions[own])
            store.add_detection(key, detect(trunk, windows, missing))
    todo = [
        (method, spec, own, strength)
        for method in args.methods
        for spec in args.purifiers
        if spec != "own" or METHODS.get(method).own_purify
        for own, strength in (wanted if spec != "undone" else wanted[:1])
        if miou_key(method, spec, own, strength) not in store.miou
    ]
    for method, spec, own, strength in tqdm(dict.fromkeys(todo), desc="methods", unit="run"):
        undone = replace(planting, strength=strength, undone=spec == "undone")
        figure = measure(args, method, spec, plant(clip, undone, directions[own]), pictures, classes)
        store.add_miou(miou_key(method, spec, own, strength), figure)
    write(args, store)


def type_of(cfg) -> str:
    return cfg.test_dataloader.dataset.type


def read_pictures(cfg, clip, images: int) -> tuple[list[Picture], int]:
    """Images spread over the config's dataset, and how many classes it has."""
    from mmengine.registry import init_default_scope
    from mmseg.registry import DATASETS

    from sfp.evaluation import spread_over

    init_default_scope("mmseg")
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    pictures = []
    for index in spread_over(dataset, images):
        item = dataset[index]
        image = clip.normalise(item["inputs"].flip(0))  # mmseg loads BGR
        pictures.append(Picture(image, item["data_samples"].gt_sem_seg.data[0], item["data_samples"].seg_map_path))
    return pictures, len(dataset.metainfo["classes"])


def read_purifier(spec: str) -> tuple[str, dict[str, Any], str]:
    """The detector of a purifier, its options, and where it acts: ``L2:topk=49@next`` to ("L2", {"topk": 49}, "next").

    Raises:
        SFPError: it is none.
    """
    detector, _, where = spec.partition("@")
    name, options = parse_spec(detector)
    if spec not in PURIFIERS and (name not in list_detectors() or where not in ("next", "all")):
        raise unknown_choice("purifier", spec, [*PURIFIERS, *(f"{name}@{place}" for name in list_detectors() for place in ("next", "all"))])
    if where:
        build_detector(name, **options)
    return name, options, where


def detection_key(own: float, strength: float) -> str:
    return f"lambda={own:g} strength={strength:g}" if strength else "clean"


def miou_key(method: str, spec: str, own: float, strength: float) -> str:
    if spec == "undone":  # neither strength nor direction matters
        return f"{method} undone"
    return f"{method} {spec} {detection_key(own, strength)}"


class Store:
    """The figures measured so far, in a file.

    Raises:
        SFPError: the file holds those of another experiment, or is damaged.
    """

    def __init__(self, path: Path, card: dict[str, Any]):
        self.path, self.card = path, card
        empty = dict(card=card, detection={}, miou={})
        found = read_results(path, lambda found: {key: dict(found[key]) for key in empty}) if path.is_file() else empty
        changed = [key for key, value in card.items() if found["card"].get(key) != value]
        if changed:
            raise SFPError(f"{path} holds figures of other {', '.join(changed)}; choose another folder with --out, or delete it.")
        self.detection: dict[str, dict] = found["detection"]
        self.miou: dict[str, float] = found["miou"]

    def add_detection(self, key: str, figures: dict) -> None:
        self.detection.setdefault(key, {}).update(figures)
        self._write()

    def add_miou(self, key: str, figure: float) -> None:
        self.miou[key] = figure
        self._write()

    def _write(self) -> None:
        with whole_file(self.path) as partial:
            partial.write_text(json.dumps(dict(card=self.card, detection=self.detection, miou=self.miou), indent=1) + "\n")


@torch.inference_mode()
def detect(trunk: PlantedTrunk, windows: list[Tensor], detectors: list[Detector]) -> dict[str, dict[str, list[float]]]:
    """What each detector makes of the planted places in layers l..L-1, and what they do there.

    Returns:
        For each detector's name "precision" and "recall" over all windows' tokens, and "auroc", the mean over windows of the
        area under the ROC curve of its scores; for "tokens" the planted tokens' norm in lengths of the others', their share of
        the class token's and of the patches' attention, and their attention to themselves. Each a list by layer.
    """
    counts: dict[tuple[str, int], np.ndarray] = {}
    aurocs: dict[tuple[str, int], list[float]] = {}
    tokens: dict[tuple[str, int], list[float]] = {}

    def look(state: LayerState) -> None:
        planted = trunk.planted
        for detector in detectors:
            mask, scores = detector(state)
            found = np.array([int((mask & planted).sum()), int(mask.sum()), int(planted.sum())])
            place = detector.name, state.layer
            counts[place] = counts.get(place, 0) + found
            truth, score = planted[0].cpu().numpy(), scores[0].float().cpu().numpy()
            aurocs.setdefault(place, []).append(float(roc_auc_score(truth, score)))
        attention, patches = state.attention[0].float(), state.patches[0].float().norm(dim=-1)
        own = planted[0]
        shown = dict(
            norm=patches[own].mean() / patches[~own].mean(),
            cls_attention=attention[0, 1:][own].sum(),
            patch_attention=attention[1:, 1:][~own][:, own].sum(1).mean(),
            self_attention=attention[1:, 1:].diagonal()[own].mean(),
        )
        for name, value in shown.items():
            tokens.setdefault((name, state.layer), []).append(float(value))

    layers = range(trunk.planting.layer, trunk.layers)
    for window in windows:
        trunk.run(window, [Hook(look, layers, Attention.MAP)], trunk.layers - 1)
    figures: dict[str, dict[str, list[float]]] = {
        "tokens": {name: [float(np.mean(tokens[name, layer])) for layer in layers] for name, _ in dict.fromkeys(tokens)}
    }
    for detector in detectors:
        right, flagged, planted = np.array([counts[detector.name, layer] for layer in layers]).T
        figures[detector.name] = dict(
            precision=(right / np.maximum(flagged, 1)).tolist(),
            recall=(right / np.maximum(planted, 1)).tolist(),
            auroc=[float(np.mean(aurocs[detector.name, layer])) for layer in layers],
        )
    return figures


def measure(args: argparse.Namespace, name: str, spec: str, clip, pictures: list[Picture], classes: int) -> float:
    """mIoU in percent of a method on a planted CLIP under a purifier, all else as the config has it."""
    from sfp.clip.text_bank import TextBank
    from sfp.config import read_config
    from sfp.counts import Figures, count_image, sum_counts
    from sfp.methods import build_method
    from sfp.pipeline import Pipeline, Protocol, Task, Vocabulary
    from sfp.segmentor import method_options

    cfg = read_config(args.config, [f"model.method={name}", *args.cfg_options])
    options = method_options(cfg.model)
    options.update(purify=None, pm=None, purify_layers=None)
    detector, of_detector, where = read_purifier(spec)
    if spec in ("off", "undone"):
        options["purify"] = False
    elif where:
        last = clip.trunk.layers
        layers = [clip.trunk.planting.layer + 1] if where == "next" else list(range(1, last))
        options.update(purify=True, pm=detector, purify_layers=layers, **of_detector)
    pipeline = Pipeline(
        build_method(name, clip, **options),
        TextBank(clip),
        Protocol(**{key: cfg.model[key] for key in Protocol.__dataclass_fields__ if key in cfg.model}),
    )
    vocabulary = Vocabulary.from_file(cfg.model.name_path, cfg.model.get("name_separator", ", "))
    task = Task(vocabulary, pipeline.embed_text(vocabulary), pipeline.protocol)
    counts = []
    for picture in pictures:
        (((labels, _),),) = pipeline.segment([picture.image], [task], [[tuple(picture.labels.shape)]])
        counts.append(count_image(labels.cpu(), picture.labels, classes, name=picture.name))
    return Figures.of(sum_counts(counts, classes)).mIoU


def write(args: argparse.Namespace, store: Store) -> None:
    """Tables and curves of what was asked for."""
    text = tables(args, store)
    with whole_file(args.out / "tables.md") as partial:
        partial.write_text(text)
    print(text)
    save_figure(detection_figure(args, store), args.out / "detection.png", "--out")
    for own in args.selfless if args.methods else []:
        save_figure(miou_figure(args, store, own), args.out / f"miou_lambda{own:g}.png", "--out")
    print(f"figures, tables and curves -> {args.out}")


def tables(args: argparse.Namespace, store: Store) -> str:
    """What is planted, who finds it, what it costs, as Markdown."""
    card, first = store.card, store.card["layer"]
    share = card["count"] / card["patches"]
    places = [(own, strength) for own in args.selfless for strength in args.strengths]
    parts = [
        f"{card['model']}, {card['images']} images of {card['dataset']}; {card['count']} of the {card['patches']} patches of each window "
        f"({100 * share:.1f} %) planted after layer {first}; one window of each image for the detectors, whole images for mIoU.\n",
        "What the planted tokens do in the next layer (clean: the same places of the untouched model):\n",
    ]
    rows = [("clean", store.detection["clean"])]
    rows += [(f"lambda {own:g}, strength {s:g}", store.detection[detection_key(own, s)]) for own, s in places]
    head = [
        "planted",
        "#norm against others'",
        "#share of the class token's attention",
        "#share of other patches' attention",
        "#attention to itself",
    ]
    body = []
    for name, figures in rows:
        tokens = figures["tokens"]
        values = [tokens[key][1] for key in ("norm", "cls_attention", "patch_attention", "self_attention")]
        body.append([name, f"{values[0]:.1f}", *(f"{value:.3f}" for value in values[1:])])
    parts.append(markdown_table(head, body))
    for layer in dict.fromkeys((first + 1, card["layers"] - 1)):
        parts.append(f"Precision / recall in percent after layer {layer} (AUROC of the scores):\n")
        head = ["detector", "#clean", *(f"#lambda {own:g}, strength {s:g}" for own, s in places)]
        body = [
            [name, *(cell(store.detection[key][name], layer - first) for key in ["clean", *(detection_key(*place) for place in places)])]
            for name in args.detectors
        ]
        parts.append(markdown_table(head, body))
    for own in args.selfless if args.methods else []:
        parts.append(f"mIoU, lambda {own:g}. Loss: clean less planted, both without purification.\n")
        strongest = max(args.strengths)
        specs = [spec for spec in args.purifiers if spec not in ("off", "undone")]
        head = ["method", "#clean", "#undone", f"#planted, strength {strongest:g}", "#loss"]
        head += [text for spec in specs for text in (f"#{spec}: clean", f"#{spec}: planted")]
        body = []
        for method in args.methods:
            clean, planted = (store.miou.get(miou_key(method, "off", own, s)) for s in (0.0, strongest))
            undone = store.miou.get(miou_key(method, "undone", own, 0.0))
            loss = None if None in (clean, planted) else clean - planted
            more = [store.miou.get(miou_key(method, spec, own, s)) for spec in specs for s in (0.0, strongest)]
            body.append([method, *("" if value is None else f"{value:.1f}" for value in (clean, undone, planted, loss, *more))])
        parts.append(markdown_table(head, body))
    return "\n".join(parts)


def cell(figures: dict[str, list[float]], place: int) -> str:
    return f"{100 * figures['precision'][place]:.0f} / {100 * figures['recall'][place]:.0f} ({figures['auroc'][place]:.2f})"


def detection_figure(args: argparse.Namespace, store: Store):
    """Precision and recall against strength in the next layer, and against layers at the largest strength; a row for each lambda."""
    from matplotlib.figure import Figure

    first = store.card["layer"]
    layers = list(range(first, store.card["layers"]))
    strengths = [0.0, *args.strengths]
    figure = Figure(figsize=(15, 3.6 * len(args.selfless)), layout="constrained")
    axes = figure.subplots(len(args.selfless), 4, squeeze=False)
    for row, own in zip(axes, args.selfless, strict=True):
        for name in args.detectors:
            by_strength = [store.detection[detection_key(own, strength)][name] for strength in strengths]
            strongest = by_strength[int(np.argmax(strengths))]
            for axis, kind in zip(row[:2], ("recall", "precision"), strict=True):
                axis.plot(strengths, [figures[kind][1] for figures in by_strength], marker="o", label=name)
            for axis, kind in zip(row[2:], ("recall", "precision"), strict=True):
                axis.plot(layers, strongest[kind], marker="o", label=name)
        for axis, title in zip(
            row,
            (
                f"recall, layer {first + 1}",
                f"precision, layer {first + 1}",
                f"recall, strength {max(strengths):g}",
                f"precision, strength {max(strengths):g}",
            ),
            strict=True,
        ):
            axis.set(title=f"lambda {own:g}: {title}", ylim=(-0.03, 1.03), xlabel="strength" if "layer" in title else "layer")
            axis.grid(alpha=0.3)
        row[1].axhline(store.card["count"] / store.card["patches"], color="black", linestyle=":", label="chance")
    axes[0, 0].legend(fontsize=8)
    return figure


def miou_figure(args: argparse.Namespace, store: Store, own: float):
    """mIoU against strength for each method, a line for each purifier."""
    from matplotlib.figure import Figure

    strengths = [0.0, *args.strengths]
    columns = min(5, len(args.methods))
    rows = -(-len(args.methods) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.8 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, method in zip(axes, args.methods, strict=False):
        for number, spec in enumerate(args.purifiers):
            values = [store.miou.get(miou_key(method, spec, own, strength)) for strength in strengths]
            if None not in values:
                label = {"off": "no purification", "undone": "planted tokens undone", "own": "as published"}.get(spec, spec)
                axis.plot(
                    strengths,
                    values,
                    marker="." if spec != "undone" else None,
                    linestyle=":" if spec == "undone" else "-",
                    color=f"C{number}",
                    label=label,
                )
        tops = [value for line in axis.get_lines() for value in line.get_ydata()]
        axis.set(title=method, xlabel="strength", ylim=(0, 1.1 * max(tops, default=1)))
        axis.grid(alpha=0.3)
    for axis in axes[len(args.methods) :]:
        axis.set_visible(False)
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), fontsize=9)
    card = store.card
    figure.suptitle(f"mIoU with {card['count']} of {card['patches']} tokens planted after layer {card['layer']}, lambda {own:g}")
    return figure


if __name__ == "__main__":
    sys.exit(main())
