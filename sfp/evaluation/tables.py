"""A folder of ``results.json`` as the papers' table.

Measured, published, difference, and what differs in the protocol.
"""

from __future__ import annotations

import csv
import functools
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sfp.errors import SFPError
from sfp.evaluation.markdown import markdown_table

Value = TypeVar("Value")

PUBLISHED_FILE = Path(__file__).parent / "paper_results.csv"
# columns of the table in the papers' order: our dataset class, the papers' key, head
COLUMNS = {
    "PascalVOCDataset": ("voc21", "V21"),
    "PascalContext60Dataset": ("context60", "C60"),
    "COCOObjectDataset": ("coco_object", "Object"),
    "PascalVOC20Dataset": ("voc20", "V20"),
    "PascalContext59Dataset": ("context59", "C59"),
    "COCOStuffDataset": ("coco_stuff164k", "Stuff"),
    "ADE20KDataset": ("ade20k", "ADE"),
    "CityscapesDataset": ("cityscapes", "City"),
    "ADE847Dataset": ("ade847", "A847"),
    "PascalContext459Dataset": ("context459", "C459"),
    "ToylandDataset": ("toyland", "Toyland"),
}
_NO_REFINEMENT = dict(pamr_iterations=0, refine=[], prompts=80)
_SMALL = dict(window=224, stride=112, **_NO_REFINEMENT, short_side={"cityscapes": 560, None: 336})
_LARGE = dict(window=448, stride=224, **_NO_REFINEMENT, short_side={None: 448})
_WHOLE_VOC21 = {**_SMALL, "window": {"voc21": 0, None: 224}}
_WHOLE_VOC = {**_SMALL, "window": {"voc20": 0, "voc21": 0, None: 224}}


def _tlp(grid: int) -> list[dict[str, Any]]:
    return [dict(type="TLP", grid=grid)]


# where a paper's main numbers stand, and how it says that they were measured; by dataset, None for
# the others, where that differs
PAPERS = {
    "SFP": (("Tab1", "Tab4"), _SMALL),
    "SC-CLIP": (("Tab1", "Tab9"), _SMALL),
    "CLIPSeg": (("Tab2",), _LARGE),
    "RF-CLIP": (("list",), _WHOLE_VOC21),
    "ResCLIP": (("README",), _WHOLE_VOC),
    "PEARL": (("README",), {**_WHOLE_VOC, "refine": {"cityscapes": _tlp(224), None: _tlp(80)}}),
    "DIH-CLIP": (("README",), _SMALL),
}
_BACKBONES = {
    "ViT-B-16": ("ViT-B/16", "ViT-B (CLIP-B, OpenAI)"),
    "ViT-L-14": ("ViT-L/14", "ViT-L (CLIP-L, OpenAI)"),
    "ViT-B-32": ("ViT-B/32",),
}


@dataclass(frozen=True)
class Entry:
    """One evaluation beside its paper.

    Attributes:
        method, backbone, dataset: row and column; the method with its changed options.
        measured, published: mIoU in percent; None where there is none.
        paper: where the published number stands, as "SFP Tab1".
        differs: what in the protocol is not the paper's.
        images: how many were measured.
    """

    method: str
    backbone: str
    dataset: str
    measured: float | None
    published: float | None = None
    paper: str | None = None
    differs: tuple[str, ...] = ()
    images: int = 0
    result: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def difference(self) -> float | None:
        return (
            None
            if self.measured is None or self.published is None
            else self.measured - self.published
        )


@functools.cache
def published_rows() -> tuple[dict[str, str], ...]:
    """All numbers of the papers' tables."""
    with PUBLISHED_FILE.open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


def find_published(
    method: str, backbone: str, dataset: str, paper: str | None = None
) -> tuple[float, str] | None:
    """mIoU that a paper prints and where.

    The method's own paper first, then SFP's, SC-CLIP's, CLIPSeg's tables.
    """
    order = [paper] if paper else sorted(PAPERS, key=lambda name: name != method)
    wanted = "SFP" if method == "SFP-release" else method
    for name in order:
        for row in published_rows():
            fits = (
                row["method"].removesuffix(" (Ours)") == wanted
                and row["dataset"] == dataset
                and row["metric"] == "mIoU"
            )
            if (
                fits
                and row["paper"] == name
                and row["table"] in PAPERS[name][0]
                and row["backbone"] in _BACKBONES.get(backbone, ())
            ):
                return float(row["value"]), f"{name} {row['table']}"
    return None


def collect(folders: Iterable[Path], paper: str | None = None) -> list[Entry]:
    """The evaluations in folders; those without ``results.json`` are left out.

    Raises:
        SFPError: a broken ``results.json``, or an unknown paper.
    """
    if paper is not None and paper not in PAPERS:
        raise SFPError(
            f"There is no paper {paper!r} among the published numbers; choose one of: "
            f"{', '.join(PAPERS)}."
        )
    entries = []
    for folder in folders:
        path = Path(folder) / "results.json"
        if not path.is_file():
            continue
        entries.append(read_results(path, lambda result: _entry(result, paper)))
    return entries


def read_results(path: Path, read: Callable[[dict[str, Any]], Value]) -> Value:
    """What ``read`` makes of a ``results.json``.

    Raises:
        SFPError: it can't be read, is not whole, or lacks what ``read`` looks for.
    """
    try:
        return read(json.loads(path.read_bytes()))
    except OSError as error:
        raise SFPError(
            f"{path} can't be read ({error.strerror}); put that right, or delete it and measure "
            f"it again."
        ) from error
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        ZeroDivisionError,
        RecursionError,
    ) as error:
        reason = f"{type(error).__name__}: {error}"
        raise SFPError(
            f"{path} is no results.json of this version ({reason}); delete it and measure it again."
        ) from error


def _entry(result: dict[str, Any], paper: str | None) -> Entry:
    key = COLUMNS.get(result["dataset"], (result["dataset"],))[0]
    changed = result["changed_options"]
    name = result["method"] + "".join(
        f", {option}={value}" for option, value in sorted(changed.items())
    )
    tag = "" if result["pretrained"] in ("openai", "toyland") else f" {result['pretrained']}"
    found = (
        None if changed or tag else find_published(result["method"], result["backbone"], key, paper)
    )
    differs = _differences(result, key, found[1].split()[0]) if found else ()
    measured = result["mIoU"]
    values = dict(measured=measured, images=result["images"], result=result)
    if found:
        values.update(published=found[0], paper=found[1], differs=differs)
    return Entry(name, result["backbone"] + tag, key, **values)


def _differences(result: dict[str, Any], key: str, paper: str) -> tuple[str, ...]:
    said = {
        name: value.get(key, value[None]) if isinstance(value, dict) else value
        for name, value in PAPERS[paper][1].items()
    }
    here = {"refine": [], **result["protocol"], "prompts": result["prompts"]}
    return tuple(
        f"{name} {here[name]} instead of {value}"
        for name, value in said.items()
        if here[name] != value
    )


def rows_and_columns(
    entries: Sequence[Entry],
) -> tuple[list[tuple[str, str]], list[str], dict[tuple[str, str, str], Entry]]:
    """Rows (method, backbone) in the order of the entries, dataset columns in the papers' order,
    and the cells.

    Raises:
        SFPError: two results for one cell.
    """
    cells: dict[tuple[str, str, str], Entry] = {}
    for entry in entries:
        place = (entry.method, entry.backbone, entry.dataset)
        if place in cells:
            raise SFPError(
                f"There are two results for {' / '.join(place)}; name the folder of one of them."
            )
        cells[place] = entry
    known = [key for key, _ in COLUMNS.values()]
    columns = sorted(
        {entry.dataset for entry in entries},
        key=lambda key: (known.index(key) if key in known else len(known), key),
    )
    return list(dict.fromkeys((entry.method, entry.backbone) for entry in entries)), columns, cells


def _number(value: float | None, signed: bool = False) -> str:
    return "" if value is None else f"{value:+.1f}" if signed else f"{value:.1f}"


def _cells(entry: Entry | None, beside: bool) -> list[str]:
    """Measured; where the column has published numbers also published and difference."""
    if entry is None:
        return [""] * (3 if beside else 1)
    more = [_number(entry.published), _number(entry.difference, signed=True)] if beside else []
    return [_number(entry.measured), *more]


def _notes(entries: Sequence[Entry]) -> list[str]:
    lines = []
    for entry in entries:
        if entry.paper:
            differs = f"; {', '.join(entry.differs)}" if entry.differs else ""
            lines.append(
                f"{entry.method}, {entry.backbone}, {entry.dataset}: published in {entry.paper}, "
                f"{entry.images} images{differs}"
            )
    return lines


def markdown(entries: Sequence[Entry]) -> str:
    """The table in Markdown.

    For each dataset measured, and where a paper has numbers published and difference; notes below.
    """
    rows, columns, cells = rows_and_columns(entries)
    if not rows:
        return "no results yet\n"
    short = {key: head for key, head in COLUMNS.values()}
    beside = {
        column: any(e.published is not None for e in entries if e.dataset == column)
        for column in columns
    }
    heads = [
        text
        for column in columns
        for text in (short.get(column, column), *(("paper", "diff") if beside[column] else ()))
    ]
    body = [
        [
            *row,
            *(
                text
                for column in columns
                for text in _cells(cells.get((*row, column)), beside[column])
            ),
        ]
        for row in rows
    ]
    table = markdown_table(["method", "backbone", *(f"#{head}" for head in heads)], body)
    notes = "".join(f"- {note}\n" for note in _notes(entries))
    return f"{table}\n{notes}" if notes else table


def as_csv(entries: Sequence[Entry]) -> str:
    """One line for each evaluation."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            "method",
            "backbone",
            "dataset",
            "measured",
            "published",
            "difference",
            "paper",
            "differs",
            "images",
        ]
    )
    for e in entries:
        numbers = ["" if v is None else f"{v:.4f}" for v in (e.measured, e.published, e.difference)]
        writer.writerow(
            [
                e.method,
                e.backbone,
                e.dataset,
                *numbers,
                e.paper or "",
                "; ".join(e.differs),
                e.images,
            ]
        )
    return out.getvalue()


def latex(entries: Sequence[Entry]) -> str:
    """The table in LaTeX (booktabs).

    Measured, the published number in brackets below it in small print.
    """
    rows, columns, cells = rows_and_columns(entries)
    heads = {key: head for key, head in COLUMNS.values()}

    def plain(text: str) -> str:
        return (
            text.replace("\\", r"\textbackslash{}")
            .replace("_", r"\_")
            .replace("&", r"\&")
            .replace("%", r"\%")
            .replace("#", r"\#")
        )

    def cell(entry: Entry | None) -> str:
        if entry is None:
            return "--"
        return _number(entry.measured) + (
            rf" {{\scriptsize({_number(entry.published)})}}" if entry.published is not None else ""
        )

    body = [
        " & ".join([plain(m), plain(b), *(cell(cells.get((m, b, column))) for column in columns)])
        + r" \\"
        for m, b in rows
    ]
    head = (
        " & ".join(
            ["Method", "Backbone", *(plain(heads.get(column, column)) for column in columns)]
        )
        + r" \\"
    )
    start, end = rf"\begin{{tabular}}{{ll{'r' * len(columns)}}}", r"\end{tabular}"
    return "\n".join([start, r"\toprule", head, r"\midrule", *body, r"\bottomrule", end]) + "\n"
