"""The papers' ablation tables as rows of the benchmark grid, their published numbers beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sfp.errors import unknown_choice
from sfp.evaluation.markdown import markdown_table
from sfp.evaluation.tables import published_rows, read_results

_CITY = {"city_scapes": "cityscapes"}  # a config's name to the papers' key


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: as ``paper_results.csv`` has it, or what it changes where no paper measured it.
        method: the grid's method string; None where no option does what the row says.
        missing: what is missing then.
        toyland: the method string on Toyland, where weights that can't be downloaded are stood in for; ``method`` if empty.
    """

    name: str
    method: str | None
    missing: str = ""
    toyland: str = ""

    def method_on(self, dataset: str) -> str | None:
        """The grid's method string on a dataset."""
        return self.toyland if self.toyland and dataset == "toyland" else self.method


@dataclass(frozen=True)
class Ablation:
    """A table.

    Attributes:
        title: what it varies.
        paper, table: where its numbers stand in ``paper_results.csv``; None for a sweep of ours.
        rows: the first one is what the others are compared with.
        backbones: the grid's backbones and their names in the table; Toyland stands beside the first.
        settings: of the grid: "common" where rows of several methods must differ in nothing else.
    """

    title: str
    paper: str | None
    table: str | None
    rows: tuple[Row, ...]
    backbones: Mapping[str, str]
    settings: str = "own"

    def methods(self, dataset: str) -> list[str]:
        """The method strings to measure on a dataset, each once."""
        return list(
            dict.fromkeys(method for row in self.rows if (method := row.method_on(dataset)))
        )

    def published(self, row: Row, backbone: str, dataset: str) -> float | None:
        """What the paper prints, mIoU in percent; on Toyland its average over the table's datasets, of the first backbone."""
        toy = dataset == "toyland"
        key = "avg" if toy else _CITY.get(dataset, dataset)
        name = next(iter(self.backbones.values())) if toy else self.backbones.get(backbone)
        for line in published_rows():
            place = (
                line["paper"],
                line["table"],
                line["method"],
                line["backbone"],
                line["dataset"],
                line["metric"],
            )
            if place == (self.paper, self.table, row.name, name, key, "mIoU"):
                return float(line["value"])
        return None


_B16 = {"ViT-B/16": "ViT-B/16"}
# The baseline of SC-CLIP's tables is Q-Q plus K-K attention without residual and FFN (methods.md 1.9). The code's class term stays in all
# rows; the attention is K-K from "+AttnEnh" on, which the paper doesn't say; "self-adjusting" is read as the aggregation alone.
_SC_PLAIN = "correlation=qk,enhance=False,fuse_layers=[]"
_SC_REPAIRED = f"SC-CLIP:{_SC_PLAIN},aggregation=none"
_SC_BASELINE = f"{_SC_REPAIRED},purify=False"
_SHARES = {
    1: 0.005,
    3: 0.015,
    5: 0.025,
    10: 0.05,
    15: 0.0765,
}  # LOF's contamination that flags so many of 196 tokens


def _aggregated(name: str, where: str, pre: int | None = None, post: int | None = None) -> Row:
    """The baseline with aggregation by layers of CLIP."""
    layers = [
        f"{option}={layer}" for option, layer in (("pre_layer", pre), ("post_layer", post)) if layer
    ]
    return Row(name, ",".join([f"SC-CLIP:{_SC_PLAIN},purify=False,aggregation={where}", *layers]))


def _seen_by(name: str, where: str) -> Row:
    """The baseline with aggregation by DINO's similarities; on Toyland by colours, as ProxyCLIP there."""
    method = f"SC-CLIP:{_SC_PLAIN},purify=False,aggregation={where},similarity="
    return Row(name, method + "vit_base_patch16_224.dino", toyland=method + "colour")


_CLIP_B_L = {"ViT-B/16": "ViT-B (CLIP-B, OpenAI)", "ViT-L/14": "ViT-L (CLIP-L, OpenAI)"}

ABLATIONS: dict[str, Ablation] = {
    "sfp-table2": Ablation(
        "SFP's modules, each added to those before",
        "SFP",
        "Tab2",
        (
            Row("baseline (ClearCLIP)", "ClearCLIP"),
            Row("baseline+SOM", "ClearCLIP:purify=True,pm=SOM"),
            Row("baseline+SOM+SAE", "SFP:hai=False"),
            Row("baseline+SOM+SAE+HAI", "SFP"),
        ),
        _B16,
        settings="common",
    ),
    "sfp-table3": Ablation(
        "first layer of HAI",
        "SFP",
        "Tab3",
        tuple(
            Row(f"SFP HAI start layer l0={layer}", f"SFP:hai_first_layer={layer}")
            for layer in (1, 5, 8, 10, 11)
        ),
        _B16,
    ),
    "sfp-table4": Ablation(
        "backbones",
        "SFP",
        "Tab4",
        (
            Row("SCLIP", "SCLIP"),
            Row("LaVG", None, "LaVG is not among the methods here"),
            Row("ProxyCLIP", "ProxyCLIP"),
            Row("NACLIP", "NACLIP"),
            Row("SFP", "SFP"),
        ),
        {"ViT-B/32": "ViT-B/32", "ViT-L/14": "ViT-L/14"},
    ),
    "sfp-questions": Ablation(
        "what SFP's text leaves open (methods.md 1.11), one answer changed at a time",
        "SFP",
        None,
        (
            Row("as read here", "SFP"),
            Row("1: heads compared by their maximum", "SFP:heads=max"),
            Row("2: attention of the patch to the class token", "SFP:direction=column"),
            Row("3: class attention times 1.5", "SFP:cls_factor=1.5"),
            Row("4: at most 10 outliers", "SFP:max_outliers=10"),
            Row("3 and 4, as released", "SFP:cls_factor=1.5,max_outliers=10"),
            Row("5: repair before the FFN", "SFP:repair_point=attention"),
            Row("5a: SOM after layer L-1 alone", "SFP:purify_layers=[11]"),
            Row("6: neighbours' sum divided by 8", "SFP:repair_divisor=eight"),
            Row("7: no clean neighbour: zero", "SFP:repair_empty=zero"),
            Row("7: no clean neighbour: from the rim inwards", "SFP:repair_empty=iterate"),
            Row("7: no clean neighbour: nearest clean token", "SFP:repair_empty=nearest"),
            Row("8: SAE mixes F_SOM itself", "SFP:sae_values=literal"),
            Row("9: SAE as a full block, with both residuals", "SFP:sae_residual=full"),
            Row("9: SAE with a residual around attention, no FFN", "SFP:sae_residual=attention"),
            Row("9: SAE with F_SOM and the FFN, Eq. 7 as printed", "SFP:sae_residual=ffn"),
            Row("9: SAE without the class token added", "SFP:sae_residual=none"),
            Row("9: without the class token added, without HAI", "SFP:sae_residual=none,hai=False"),
            Row("9, 10: full block, no LN before its FFN", "SFP:sae_residual=full,sae_norm=False"),
            Row("11: class token in SAE's attention", "SFP:sae_cls_key=True"),
            Row("9, 11: full block, class token a key", "SFP:sae_residual=full,sae_cls_key=True"),
            Row("12: class token in HAI", "SFP:hai_cls=True"),
            Row("13: outliers' rows of HAI zeroed", "SFP:hai_rows=zeroed"),
            Row("14: HAI normalised 3 times", "SFP:hai_iterations=3"),
            Row("14: HAI normalised 20 times", "SFP:hai_iterations=20"),
            Row("17: HAI after the projection", "SFP:hai_place=after"),
            Row("none: without purification", "SFP:purify=False"),
        ),
        _B16,
    ),
    "sc-clip-table2": Ablation(
        "SC-CLIP's strategies, each added to those before",
        "SC-CLIP",
        "Tab2",
        (
            Row("baseline", _SC_BASELINE),
            Row("+AnomRes", _SC_REPAIRED),
            Row("+AttnEnh", "SC-CLIP:aggregation=none,fuse_layers=[]"),
            Row("+FeatAgg", "SC-CLIP:fuse_layers=[]"),
            Row("+MultiFuse", "SC-CLIP"),
        ),
        _B16,
    ),
    "sc-clip-table3": Ablation(
        "number of repaired tokens",
        "SC-CLIP",
        "Tab3",
        (
            Row("baseline", _SC_BASELINE),
            *(
                Row(
                    f"resolve {n} anomaly token{'s' if n > 1 else ''}",
                    _SC_REPAIRED + (f",contamination={share}" if n != 10 else ""),
                )
                for n, share in _SHARES.items()
            ),
        ),
        _B16,
    ),
    "sc-clip-table4": Ablation(
        "where tokens are aggregated, by which layer's similarity",
        "SC-CLIP",
        "Tab4",
        (
            Row("without self-adjusting", _SC_BASELINE),
            _seen_by("adjust X_penul, source DINO", "before"),
            *(
                _aggregated(f"adjust X_penul, source layer {layer}", "before", pre=layer)
                for layer in (4, 8, 9)
            ),
            _seen_by("adjust X_last, source DINO", "after"),
            *(
                _aggregated(f"adjust X_last, source layer {layer}", "after", post=layer)
                for layer in (4, 5, 9)
            ),
            _seen_by("adjust both, source DINO", "both"),
            *(
                _aggregated(f"adjust both, layers ({a},{b})", "both", a, b)
                for a, b in ((8, 5), (4, 9), (9, 4))
            ),
        ),
        _B16,
    ),
    "sc-clip-table5": Ablation(
        "layers of the second stream, and other ways to fuse",
        "SC-CLIP",
        "Tab5",
        (
            Row("(a) ours 4-10", "SC-CLIP"),
            Row("(a) ours {5}", "SC-CLIP:fuse_layers=[5,5]"),
            Row("(a) ours {9}", "SC-CLIP:fuse_layers=[9,9]"),
            Row("(a) ours 5-10", "SC-CLIP:fuse_layers=[5,10]"),
            Row("(a) ours 4-11", "SC-CLIP:fuse_layers=[4,11]"),
            Row("(a) ours {5,9}", "SC-CLIP:fuse_layers=[[5,5],[9,9]]"),
            Row("w/o multi-level fusion", "SC-CLIP:fuse_layers=[]"),
            Row("(b) direct summing up {5,9}", "SC-CLIP:fusion=sum,fuse_layers=[[5,5],[9,9]]"),
            Row("(b) direct summing up 4-10", "SC-CLIP:fusion=sum"),
            Row(
                "(c) CLIPSurgery dual path {5,9}",
                "SC-CLIP:fusion=dual_path,fuse_layers=[[5,5],[9,9]]",
            ),
            Row("(c) CLIPSurgery dual path 4-10", "SC-CLIP:fusion=dual_path"),
        ),
        _B16,
    ),
    "sc-clip-table6": Ablation(
        "how a repaired token is filled",
        "SC-CLIP",
        "Tab6",
        (
            Row("baseline", _SC_BASELINE),
            *(
                Row(f"{way} interpolation", f"{_SC_REPAIRED},repair_filling={way}")
                for way in ("bilinear", "nearest", "median", "weighted")
            ),
            Row("mean interpolation", _SC_REPAIRED),
        ),
        _B16,
    ),
    "sc-clip-table7": Ablation(
        "layers of the two similarities",
        "SC-CLIP",
        "Tab7",
        (
            Row("without self-adjusting", _SC_BASELINE),
            *(
                _aggregated(f"adjust both, layers ({a},{b})", "both", a, b)
                for a, b in ((5, 8), (4, 9), (10, 4), (8, 5), (9, 5), (9, 4))
            ),
        ),
        _B16,
    ),
    "sc-clip-table8": Ablation(
        "the last attention's own part",
        "SC-CLIP",
        "Tab8",
        (
            Row("K-K", "SC-CLIP"),
            Row("V-V", "SC-CLIP:correlation=v"),
            Row("Q-Q", "SC-CLIP:correlation=q"),
            Row("Q-Q + K-K", "SC-CLIP:correlation=qk"),
        ),
        _B16,
    ),
    "sc-clip-layers": Ablation(
        "SC-CLIP's strategies on or off the whole method, which no paper measured: repaired tokens, layers, aggregation, attention",
        "SC-CLIP",
        None,
        (
            Row("as published", "SC-CLIP"),
            Row("no repair", "SC-CLIP:purify=False"),
            *(
                Row(f"{n} of 196 tokens repaired", f"SC-CLIP:contamination={share}")
                for n, share in _SHARES.items()
                if n != 10
            ),
            *(
                Row(f"layers ({a},{b})", f"SC-CLIP:pre_layer={a},post_layer={b}")
                for a, b in ((5, 8), (4, 9), (10, 4), (8, 5), (9, 5))
            ),
            Row("no aggregation", "SC-CLIP:aggregation=none"),
            Row("no aggregation before", "SC-CLIP:aggregation=after"),
            Row("no aggregation after", "SC-CLIP:aggregation=before"),
            Row("no similarity in the attention", "SC-CLIP:enhance=False"),
            Row("baseline of Table 2 without the class term", f"{_SC_BASELINE},res_cls=0.0"),
        ),
        _B16,
    ),
    "clipseg-table4": Ablation(
        "the attention of CRA",
        "CLIPSeg",
        "Tab4",
        (
            Row("attention: k_M-k_M + G(k_M)", "CLIPSeg"),
            Row("attention: k_M-k_M", "CLIPSeg:epsilon=0.0"),
            Row("attention: k_L-k_L", "CLIPSeg:epsilon=0.0,attention_layer=-1"),
            Row("attention: q-k", "CLIPSeg:attention=q-k"),
        ),
        _CLIP_B_L,
    ),
    "clipseg-table5": Ablation(
        "first deep layer of DSI",
        "CLIPSeg",
        "Tab5",
        tuple(
            Row(f"DSI start layer l={first}", f"CLIPSeg:deep_layers={first}")
            for first in (-1, -2, -3, -4)
        ),
        {
            "ViT-B/16": "ViT-B (CLIP-B, OpenAI)",
            "ViT-L/14:metaclip_400m": "ViT-L (Meta-L-400M, MetaCLIP 400M)",
        },
    ),
    "clipseg-table6": Ablation(
        "temperature of CRA",
        "CLIPSeg",
        "Tab6",
        tuple(Row(f"temperature tau={tau}", f"CLIPSeg:tau={tau}.0") for tau in (5, 6, 7, 8)),
        _CLIP_B_L,
    ),
}


def find_ablation(name: str) -> Ablation:
    """The ablation of that name.

    Raises:
        SFPError: there is none; the message offers the closest.
    """
    if name not in ABLATIONS:
        raise unknown_choice("ablation", name, ABLATIONS)
    return ABLATIONS[name]


def read_miou(folder: Path) -> float | None:
    """mIoU of a finished evaluation, None where there is none.

    Raises:
        SFPError: a broken ``results.json``.
    """
    path = folder / "results.json"
    if not path.is_file():
        return None
    return read_results(path, lambda result: float(result["mIoU"]))


def ablation_table(
    ablation: Ablation,
    backbone: str,
    datasets: Sequence[str],
    measured: Mapping[tuple[str, str, str], float | None],
) -> str:
    """A table in Markdown: each row's mIoU and its change against the first row that has one, as measured and as published.

    Args:
        ablation: the table.
        backbone: of the grid.
        datasets: names of configs.
        measured: mIoU in percent by (method string, backbone, dataset); None where an evaluation failed.
    """
    head, columns = ["row", "method"], []
    for dataset in datasets:
        head += [f"#{dataset}", "#change"]
        columns.append(
            [
                measured.get((row.method_on(dataset) or "", backbone, dataset))
                for row in ablation.rows
            ]
        )
        if ablation.table:
            head += ["#paper's average" if dataset == "toyland" else "#paper", "#change"]
            columns.append([ablation.published(row, backbone, dataset) for row in ablation.rows])
    body = []
    for i, row in enumerate(ablation.rows):
        cells = [text for values in columns for text in _beside(values, i)]
        body.append(
            [
                row.name,
                f"`{method}`" if (method := row.method_on(datasets[0])) else "no option",
                *cells,
            ]
        )
    return markdown_table(head, body)


def equal_signs(
    ablation: Ablation,
    backbone: str,
    dataset: str,
    measured: Mapping[tuple[str, str, str], float | None],
) -> tuple[int, int]:
    """How many changes, as printed, have the published one's sign, and how many changes the paper prints.

    A published change of 0.0 has no sign and doesn't count.
    """
    own = [measured.get((row.method_on(dataset) or "", backbone, dataset)) for row in ablation.rows]
    papers = [
        ablation.published(row, backbone, dataset) if ablation.table else None
        for row in ablation.rows
    ]
    changes = [(_beside(own, i)[1], _beside(papers, i)[1]) for i in range(len(own))]
    pairs = [
        (float(ours), float(theirs))
        for ours, theirs in changes
        if ours and theirs and float(theirs)
    ]
    return sum(ours * theirs > 0 for ours, theirs in pairs), len(pairs)


def missing_rows(ablation: Ablation) -> str:
    """Which rows can't be measured and why, as a Markdown list."""
    names: dict[str, list[str]] = {}
    for row in ablation.rows:
        if row.method is None:
            names.setdefault(row.missing, []).append(row.name)
    return "".join(
        f"- Not measured: {', '.join(own)}: {reason}.\n" for reason, own in names.items()
    )


def _beside(values: Sequence[float | None], place: int) -> tuple[str, str]:
    """A value, and how far it lies above the first row's that has one."""
    first = next((i for i, value in enumerate(values) if value is not None), None)
    value = values[place]
    if value is None:
        return "", ""
    return f"{value:.1f}", "" if place == first else f"{value - values[first]:+.1f}"
