"""Tables and curves of the experiment of planted outliers (sfp/planting_experiment.py): means and spreads over the seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sfp.markdown import markdown_table
from sfp.planting_experiment import Case, Plan, Store, miou_key

_TOKENS = {
    "norm": "#norm against others'",
    "cls_attention": "#share of the class token's attention",
    "patch_attention": "#share of other patches' attention",
    "self_attention": "#attention to itself",
}
_LABELS = {"off": "no purification", "undone": "planted tokens undone", "own": "as published"}


def tables(plan: Plan, store: Store) -> str:
    """What is planted, who finds it, what it costs and what purification brings back, as Markdown."""
    card, first = store.card, store.card["layer"]
    share = 100 * card["count"] / card["patches"]
    seeds = f"seed {plan.seeds[0]}" if len(plan.seeds) == 1 else f"mean ± standard deviation of {len(plan.seeds)} seeds of the places"
    parts = [
        f"{card['model']}, {card['images']} images of {card['dataset']}; {card['count']} of the {card['patches']} patches of each window "
        f"({share:.1f} %) planted after layer {first}; {seeds}; one window of each image for the detectors, whole images for mIoU.\n",
        "What the planted tokens do in the next layer (clean: the same places of the untouched model):\n",
        _token_table(plan, store),
    ]
    for layer in dict.fromkeys((first + 1, card["layers"] - 1)):
        parts += [f"Precision / recall in percent after layer {layer} (AUROC of the scores):\n", _detector_table(plan, store, layer)]
    for own in plan.selfless if plan.methods else []:
        strongest = f"mIoU, lambda {own:g}, strength {max(plan.strengths):g}."
        parts += [
            f"{strongest} Loss: clean less planted, both without purification; undone: the planted tokens alone are repaired, at once.\n",
            _loss_table(plan, store, own),
        ]
        if set(plan.purifiers) - {"off", "undone"}:
            parts += [
                f"{strongest} Under each purifier the mIoU of the clean model, that of the planted one, and in brackets what the purifier "
                "changes of the latter.\n",
                _recovery_table(plan, store, own),
            ]
    return "\n".join(parts)


def _shown(values: Sequence[float] | np.ndarray, form: str = ".1f") -> str:
    """The mean, and the sample standard deviation where there are several that differ; nothing where one is missing."""
    if np.isnan(values).any():
        return ""
    spread = np.std(values, ddof=1) if len(values) > 1 and np.ptp(values) else 0.0
    return f"{np.mean(values):{form}}" + (f" ± {spread:{form.replace('+', '')}}" if spread else "")


def _columns(plan: Plan) -> list[tuple[str, float, float]]:
    """Titles, lambdas and strengths of what was planted, the clean model first."""
    planted = [(f"lambda {own:g}, strength {s:g}", own, s) for own in plan.selfless for s in plan.strengths]
    return [("clean", 0.0, 0.0), *planted]


def _token_table(plan: Plan, store: Store) -> str:
    body = []
    for title, own, strength in _columns(plan):
        tokens = [store.detection[Case(seed, own, strength).key]["tokens"] for seed in plan.seeds]
        means = {name: np.mean([found[name][1] for found in tokens]) for name in _TOKENS}
        body.append([title, *(f"{mean:.{1 if name == 'norm' else 3}f}" for name, mean in means.items())])
    return markdown_table(["planted", *_TOKENS.values()], body)


def _detector_table(plan: Plan, store: Store, layer: int) -> str:
    columns = _columns(plan)

    def cell(name: str, own: float, strength: float) -> str:
        found = [store.detection[Case(seed, own, strength).key][name] for seed in plan.seeds]
        values = {kind: [figures[kind][layer - store.card["layer"]] for figures in found] for kind in ("precision", "recall", "auroc")}
        of_percent = (_shown([100 * value for value in values[kind]], ".0f") for kind in ("precision", "recall"))
        return f"{' / '.join(of_percent)} ({np.mean(values['auroc']):.2f})"

    body = [[name, *(cell(name, own, strength) for _, own, strength in columns)] for name in plan.detectors]
    return markdown_table(["detector", *(f"#{title}" for title, _, _ in columns)], body)


def _mious(plan: Plan, store: Store, method: str, spec: str, own: float, strength: float) -> np.ndarray:
    """mIoU by seed, NaN where it was not measured."""
    return np.array([store.miou.get(miou_key(method, spec, Case(seed, own, strength)), np.nan) for seed in plan.seeds])


def _loss_table(plan: Plan, store: Store, own: float) -> str:
    body = []
    for method in plan.methods:
        clean, planted = (_mious(plan, store, method, "off", own, strength) for strength in (0.0, max(plan.strengths)))
        undone = _mious(plan, store, method, "undone", own, 0.0)
        body.append([method, *(_shown(values) for values in (clean, undone, planted, clean - planted))])
    return markdown_table(["method", "#clean", "#undone", "#planted", "#loss"], body)


def _recovery_table(plan: Plan, store: Store, own: float) -> str:
    specs = [spec for spec in plan.purifiers if spec not in ("off", "undone")]
    body = []
    for method in plan.methods:
        off, *purified = (
            [_mious(plan, store, method, spec, own, strength) for strength in (0.0, max(plan.strengths))] for spec in ("off", *specs)
        )
        cells = []
        for clean, planted in purified:
            change = _shown(planted - off[1], "+.1f")
            cells.append(f"{_shown(clean)}, {planted.mean():.1f} ({change})" if change else "")
        body.append([method, *map(_shown, off), *cells])
    return markdown_table(["method", "#clean, off", "#planted, off", *(f"#{spec}" for spec in specs)], body)


def detection_figure(plan: Plan, store: Store) -> Figure:
    """Precision and recall against strength in the next layer, and against layers at the largest strength; a row for each lambda."""
    first, strongest = store.card["layer"], max(plan.strengths)
    layers = list(range(first, store.card["layers"]))
    strengths = [0.0, *sorted(plan.strengths)]
    figure = Figure(figsize=(15, 3.6 * len(plan.selfless)), layout="constrained")
    axes = figure.subplots(len(plan.selfless), 4, squeeze=False)

    def values(name: str, kind: str, own: float, strength: float) -> np.ndarray:
        return np.array([store.detection[Case(seed, own, strength).key][name][kind] for seed in plan.seeds])  # seeds, layers

    for row, own in zip(axes, plan.selfless, strict=True):
        for number, name in enumerate(plan.detectors):
            for axis, kind in zip(row[:2], ("recall", "precision"), strict=True):
                by_strength = np.stack([values(name, kind, own, strength)[:, 1] for strength in strengths], 1)
                _line(axis, strengths, by_strength, f"C{number}", name)
            for axis, kind in zip(row[2:], ("recall", "precision"), strict=True):
                _line(axis, layers, values(name, kind, own, strongest), f"C{number}", name)
        titles = (f"{kind}, {where}" for where in (f"layer {first + 1}", f"strength {strongest:g}") for kind in ("recall", "precision"))
        for axis, title, of in zip(row, titles, ("strength", "strength", "layer", "layer"), strict=True):
            axis.set(title=f"lambda {own:g}: {title}", ylim=(-0.03, 1.03), xlabel=of)
            axis.grid(alpha=0.3)
        row[1].axhline(store.card["count"] / store.card["patches"], color="black", linestyle=":", label="chance")
    handles, labels = axes[0, 1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9)
    return figure


def miou_figure(plan: Plan, store: Store, own: float) -> Figure:
    """mIoU against strength for each method, a line for each purifier, a band from the smallest to the largest over the seeds."""
    strengths = [0.0, *sorted(plan.strengths)]
    columns = min(5, len(plan.methods))
    rows = -(-len(plan.methods) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.8 * rows + 0.8), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, method in zip(axes, plan.methods, strict=False):
        tops = [1.0]
        for number, spec in enumerate(plan.purifiers):
            values = np.stack([_mious(plan, store, method, spec, own, strength) for strength in strengths], 1)
            if not np.isnan(values).any():
                undone = spec == "undone"
                _line(axis, strengths, values, f"C{number}", _LABELS.get(spec, spec), ":" if undone else "-", None if undone else ".")
                tops.append(values.max())
        axis.set(title=method, xlabel="strength", ylim=(0, 1.1 * max(tops)))
        axis.grid(alpha=0.3)
    for axis in axes[len(plan.methods) :]:
        axis.set_visible(False)
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(7, len(handles)), fontsize=9)
    card = store.card
    figure.suptitle(f"mIoU with {card['count']} of {card['patches']} tokens planted after layer {card['layer']}, lambda {own:g}")
    return figure


def _line(axis: Axes, x: Sequence[float], values: np.ndarray, colour: str, label: str, style: str = "-", marker: str | None = "o") -> None:
    """The mean over seeds (seeds, points), and a band from their smallest to their largest."""
    axis.plot(x, values.mean(0), color=colour, label=label, linestyle=style, marker=marker)
    if len(values) > 1:
        axis.fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)
