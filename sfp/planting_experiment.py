"""The experiment of planted outliers: who finds them, what they cost each method, and what purification brings back.

What is planted is defined in sfp/outliers/planting.py. Figures are measured one by one and kept in a file, so that the same plan goes
on where it stopped and a wider one measures only what is missing. sfp/planting_figures.py makes tables and curves of them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmengine.config import Config
from sklearn.metrics import roc_auc_score
from torch import Tensor
from tqdm import tqdm

from sfp.clip import load_clip
from sfp.clip.text_bank import TextBank
from sfp.clip.trunk import Attention, Hook, LayerState
from sfp.config import read_config
from sfp.counts import Figures, count_image, sum_counts
from sfp.errors import SFPError, unknown_choice
from sfp.evaluation import build_dataset, check_task, spread_over
from sfp.files import whole_file
from sfp.methods import METHODS, build_method
from sfp.options import parse_spec
from sfp.outliers import Detector, build_detector, list_detectors
from sfp.outliers.planting import PlantedTrunk, Planting, drawing_direction, plant
from sfp.pipeline import Pipeline, Task
from sfp.pipeline.windows import cut, window_grid
from sfp.result_table import read_results
from sfp.segmentor import method_options, read_protocol, read_vocabulary

if TYPE_CHECKING:
    from sfp.clip.clip import FrozenCLIP

PURIFIERS = ("off", "own", "undone")


@dataclass(frozen=True)
class Case:
    """What a model is planted with: places by the seed, lambda, and strength; strength 0 is the clean model.

    Attributes:
        key: of what a detector finds; the places are the seed's on the clean model, too.
        miou_key: of a method's mIoU, which on the clean model no seed changes.
    """

    seed: int
    selfless: float
    strength: float

    @property
    def key(self) -> str:
        return f"seed={self.seed} " + (f"lambda={self.selfless:g} strength={self.strength:g}" if self.strength else "clean")

    @property
    def miou_key(self) -> str:
        return self.key if self.strength else "clean"


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        config, options: a config file and keys overridden in it.
        images: how many, spread over the dataset.
        layer: after which outliers are planted; the middle one if None.
        count: outliers in each window.
        strengths: above 0; the clean model is measured as well.
        selfless: values of lambda.
        seeds: of the places.
        detectors: whose precision and recall are measured, ``NAME`` or ``NAME:KEY=VALUE``.
        methods: whose mIoU is measured.
        purifiers: under which; see ``read_purifier``.
    """

    config: str
    options: Sequence[str]
    images: int
    layer: int | None
    count: int
    strengths: Sequence[float]
    selfless: Sequence[float]
    seeds: Sequence[int]
    detectors: Sequence[str]
    methods: Sequence[str]
    purifiers: Sequence[str]

    def check(self) -> None:
        """Refuse what can't be measured, before anything is loaded.

        Raises:
            SFPError: counts, strengths, lambdas, seeds or names that make no sense.
        """
        if self.images < 1 or not all(0 < strength < float("inf") for strength in self.strengths):
            raise SFPError(f"--images is {self.images}, --strengths {self.strengths}; give at least 1 image and strengths above 0.")
        if self.count < 1 or not all(0 <= own < float("inf") for own in self.selfless):
            raise SFPError(f"--count is {self.count}, --selfless {self.selfless}; give at least 1 outlier and no negative number.")
        for option in ("strengths", "selfless", "seeds", "detectors", "methods", "purifiers"):
            values = getattr(self, option)
            if len(set(values)) < len(values):
                raise SFPError(f"--{option} {' '.join(map(str, values))} names one twice; name each once.")
        if any(seed < 0 for seed in self.seeds):
            raise SFPError(f"--seeds {' '.join(map(str, self.seeds))} has a negative one; give seeds of at least 0.")
        for spec in self.detectors:
            read_detector(spec)
        for name in self.methods:
            METHODS.get(name)
        for spec in self.purifiers:
            read_purifier(spec)

    def cases(self, seed: int) -> list[Case]:
        """The clean model, and each lambda and strength, of a seed."""
        return [Case(seed, 0.0, 0.0), *(Case(seed, own, strength) for own in self.selfless for strength in self.strengths)]

    def purifiers_of(self, method: str) -> list[str]:
        """Those that exist for a method: "own" only where it was published with purification."""
        return [spec for spec in self.purifiers if spec != "own" or METHODS.get(method).own_purify]

    def runs(self) -> list[tuple[str, str, Case]]:
        """Method, purifier and case of every mIoU, a seed after the other."""
        runs: dict[str, tuple[str, str, Case]] = {}
        for seed in self.seeds:
            for method in self.methods:
                for spec in self.purifiers_of(method):
                    for case in self.cases(seed) if spec != "undone" else [Case(seed, 0.0, 1.0)]:
                        runs.setdefault(miou_key(method, spec, case), (method, spec, case))
        return list(runs.values())


def read_detector(spec: str) -> Detector:
    """The detector of ``NAME:KEY=VALUE``.

    Raises:
        SFPError: unknown name or option.
    """
    name, options = parse_spec(spec)
    return build_detector(name, **options)


def read_purifier(spec: str) -> tuple[str, dict[str, Any], str]:
    """The detector of a purifier, its options, and where it acts: ``L2:topk=49@next`` to ("L2", {"topk": 49}, "next").

    Besides these there are "off", "own" (as the method was published) and "undone" (the planted tokens alone are repaired, at once).

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


def miou_key(method: str, spec: str, case: Case) -> str:
    """Where the store keeps an mIoU."""
    if spec == "undone":  # neither strength nor direction matters
        return f"{method} undone seed={case.seed}"
    return f"{method} {spec} {case.miou_key}"


class Store:
    """The figures measured so far, in a file.

    Attributes:
        card: what they are of.
        detection: by ``Case.key``, what ``detect`` returns.
        miou: by ``miou_key``, in percent.

    Raises:
        SFPError: the file is broken, or holds figures of another experiment.
    """

    def __init__(self, path: Path, card: dict[str, Any]):
        self.path, self.card = path, card
        self.detection: dict[str, dict] = {}
        self.miou: dict[str, float] = {}
        if not path.is_file():
            return
        known, self.detection, self.miou = read_results(path, lambda found: [dict(found[key]) for key in ("card", "detection", "miou")])
        changed = [key for key in {**card, **known} if known.get(key) != card.get(key)]
        if changed:
            raise SFPError(f"{path} holds figures of other {', '.join(changed)}; choose another folder with --out, or delete it.")

    def add_detection(self, key: str, figures: dict) -> None:
        self.detection.setdefault(key, {}).update(figures)
        self._write()

    def add_miou(self, key: str, figure: float) -> None:
        self.miou[key] = figure
        self._write()

    def _write(self) -> None:
        with whole_file(self.path) as partial:
            partial.write_text(json.dumps(dict(card=self.card, detection=self.detection, miou=self.miou), indent=1) + "\n")


@dataclass(frozen=True)
class Picture:
    """An image as the pipeline takes it, (3, H, W) normalised, and its labels (H, W) at their own size."""

    image: Tensor
    labels: Tensor
    name: str


def run_plan(plan: Plan, path: Path) -> Store:
    """Measure what the file of figures lacks.

    Raises:
        SFPError: a wrong plan, config or data, or figures of another experiment in the file.
    """
    plan.check()
    cfg = read_config(plan.config, plan.options)
    protocol = read_protocol(cfg.model)
    clip = load_clip(cfg.model.clip, cfg.model.pretrained, device=cfg.model.get("device"), precision=cfg.model.get("precision"))
    layer = clip.trunk.layers // 2 if plan.layer is None else plan.layer
    pictures, classes = read_pictures(cfg, clip, plan.images)
    middle = [window_grid(*p.image.shape[1:], protocol.window, protocol.stride) for p in pictures]
    windows = [cut(p.image, grid[len(grid) // 2])[None].to(clip.device) for p, grid in zip(pictures, middle, strict=True)]
    directions = {own: drawing_direction(clip.trunk, torch.cat(windows), layer, own) for own in dict.fromkeys((0.0, *plan.selfless))}
    card = dict(
        model=clip.name, weights_sha256=clip.fingerprint, dataset=cfg.test_dataloader.dataset.type, images=len(pictures), layer=layer,
        count=plan.count, patches=int(np.prod(clip.trunk.grid_of(*windows[0].shape[2:]))), layers=clip.trunk.layers,
        options=list(plan.options),
    )  # fmt: skip
    store = Store(path, card)

    def planting(case: Case, undone: bool = False) -> Planting:
        return Planting(layer, plan.count, case.strength, case.seed, undone)

    for case in tqdm([case for seed in plan.seeds for case in plan.cases(seed)], desc="detectors", unit="planting"):
        missing = {spec: read_detector(spec) for spec in plan.detectors if spec not in store.detection.get(case.key, {})}
        if missing:
            trunk = PlantedTrunk(clip.trunk, planting(case), directions[case.selfless])
            store.add_detection(case.key, detect(trunk, windows, missing))
    text_bank = TextBank(clip)
    missing_runs = [run for run in plan.runs() if miou_key(*run) not in store.miou]
    for method, spec, case in tqdm(missing_runs, desc="methods", unit="run"):
        planted = plant(clip, planting(case, spec == "undone"), directions[case.selfless])
        cfg = read_config(plan.config, [f"model.method={method}", *plan.options])
        store.add_miou(miou_key(method, spec, case), measure(cfg, spec, planted, text_bank, pictures, classes))
    return store


def read_pictures(cfg: Config, clip: FrozenCLIP, images: int) -> tuple[list[Picture], int]:
    """Images spread over the config's dataset, and how many classes it has."""
    dataset = build_dataset(cfg)
    check_task(read_vocabulary(cfg.model), read_protocol(cfg.model), dataset)
    pictures = []
    for index in spread_over(dataset, images):
        item = dataset[index]
        image = clip.normalise(item["inputs"].flip(0))  # mmseg loads BGR
        pictures.append(Picture(image, item["data_samples"].gt_sem_seg.data[0], item["data_samples"].seg_map_path))
    return pictures, len(dataset.metainfo["classes"])


@torch.inference_mode()
def detect(trunk: PlantedTrunk, windows: Sequence[Tensor], detectors: Mapping[str, Detector]) -> dict[str, dict[str, list[float]]]:
    """What each detector makes of the planted places in layers l..L-1, and what they do there.

    Returns:
        For each detector, by its key, "precision" and "recall" over all windows' tokens, and "auroc", the mean over windows of the
        area under the ROC curve of its scores; for "tokens" the planted tokens' norm in lengths of the others', their share of
        the class token's and of the patches' attention, and their attention to themselves. Each a list by layer.
    """
    counts: dict[tuple[str, int], np.ndarray] = {}
    aurocs: dict[tuple[str, int], list[float]] = {}
    tokens: dict[tuple[str, int], list[float]] = {}

    def look(state: LayerState) -> None:
        planted = trunk.planted
        for name, detector in detectors.items():
            mask, scores = detector(state)
            found = np.array([int((mask & planted).sum()), int(mask.sum()), int(planted.sum())])
            place = name, state.layer
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
    for name in detectors:
        right, flagged, planted = np.array([counts[name, layer] for layer in layers]).T
        figures[name] = dict(
            precision=(right / np.maximum(flagged, 1)).tolist(),
            recall=(right / np.maximum(planted, 1)).tolist(),
            auroc=[float(np.mean(aurocs[name, layer])) for layer in layers],
        )
    return figures


def measure(cfg: Config, spec: str, clip: FrozenCLIP, text_bank: TextBank, pictures: Collection[Picture], classes: int) -> float:
    """mIoU in percent of a config's method on a planted CLIP under a purifier, all else as the config has it."""
    options = method_options(cfg.model)
    options.update(purify=None, pm=None, purify_layers=None)
    detector, of_detector, where = read_purifier(spec)
    if spec in ("off", "undone"):
        options["purify"] = False
    elif where:
        layers = [clip.trunk.planting.layer + 1] if where == "next" else list(range(1, clip.trunk.layers))
        options.update(purify=True, pm=detector, purify_layers=layers, **of_detector)
    protocol = read_protocol(cfg.model)
    pipeline = Pipeline(build_method(cfg.model.method, clip, **options), text_bank, protocol)
    vocabulary = read_vocabulary(cfg.model)
    task = Task(vocabulary, pipeline.embed_text(vocabulary), protocol)
    counts = []
    for picture in pictures:
        (((labels, _),),) = pipeline.segment([picture.image], [task], [[tuple(picture.labels.shape)]])
        counts.append(count_image(labels.cpu(), picture.labels, classes, name=picture.name))
    return Figures.of(sum_counts(counts, classes)).mIoU
