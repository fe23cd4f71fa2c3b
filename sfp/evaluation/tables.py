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
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

from sfp.datasets.layouts import LAYOUTS
from sfp.datasets.toyland import VAL_SCENES
from sfp.errors import SFPError
from sfp.evaluation.markdown import markdown_table
from sfp.evaluation.published import BACKBONES, NOT_RUN, PAPERS, find_published

Value = TypeVar("Value")

_CONFIGS = {"cityscapes": "city_scapes"}  # the papers' key to a config's name
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


@dataclass(frozen=True)
class Entry:
    """One evaluation beside its paper, or a paper's number of a method that isn't run here.

    Attributes:
        method, backbone, dataset: row and column; the method with its changed options.
        measured, published: mIoU in percent; None where there is none.
        paper: where the published number stands, as "SFP Tab1".
        differs: what in the protocol is not the paper's, or where there is none not that of the
            method's own settings.
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
        return None if None in (self.published, self.measured) else self.measured - self.published


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


def peers(entries: Sequence[Entry], paper: str | None = None) -> list[Entry]:
    """The published numbers of ``NOT_RUN`` on the datasets of entries, for rows below theirs."""
    backbone, datasets = next(iter(BACKBONES)), dict.fromkeys(entry.dataset for entry in entries)
    found = []
    for method, reason in NOT_RUN.items():
        for dataset in datasets:
            number, where = find_published(method, backbone, dataset, paper) or (None, None)
            if where is not None:
                found.append(Entry(method, backbone, dataset, None, number, where, (reason,)))
    return found


def peers_table() -> str:
    """All published numbers of ``NOT_RUN`` in Markdown, for docs/peers.md."""
    columns = [key for key, _ in COLUMNS.values() if key != "toyland"]
    cells = {
        (own.method, own.dataset): own
        for own in peers([Entry("", "", key, None) for key in columns])
    }
    body = []
    for method, reason in NOT_RUN.items():
        own = [cells.get((method, key)) for key in columns]
        papers = ", ".join(dict.fromkeys(entry.paper for entry in own if entry))
        numbers = [_number(entry and entry.published) for entry in own]
        body.append([method, reason, papers, *numbers])
    heads = [f"#{head}" for key, head in COLUMNS.values() if key in columns]
    return markdown_table(["method", "why", "published in", *heads], body)


def read_results(path: Path, read: Callable[[dict[str, Any]], Value]) -> Value:
    """What ``read`` makes of a ``results.json``.

    Raises:
        SFPError: it can't be read, is not whole, or lacks what ``read`` looks for.
    """
    try:
        result = json.loads(path.read_bytes())
        for key in ("mIoU", "aAcc", "mAcc"):
            if type(result[key]) not in (int, float) or not 0 <= result[key] <= 100:
                raise ValueError(f"{key} is {result[key]!r}, no percentage")
        if type(result["images"]) is not int or result["images"] < 1:
            raise ValueError(f"images is {result['images']!r}, no number of images")
        return read(result)
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
    published, where = found or (None, None)
    return Entry(
        name,
        result["backbone"] + tag,
        key,
        measured=result["mIoU"],
        published=published,
        paper=where,
        differs=_differences(result, key, where.split()[0] if where else None),
        images=result["images"],
        result=result,
    )


def _differences(result: dict[str, Any], key: str, paper: str | None) -> tuple[str, ...]:
    """What of a result's protocol is neither the paper's nor, where that is silent, that of the
    settings that come with the method.
    """
    said = dict(_settings(result["method"], result["backbone"], key))
    if paper is not None:
        for name, value in PAPERS[paper][1].items():
            said[name] = value.get(key, value[None]) if isinstance(value, dict) else value
    keys = ("prompts", "prompts_sha256", "precision", "images", "names")
    here = result["protocol"] | {name: result[name] for name in keys}
    if here["prompts"] != said.get("prompts"):  # the number says it already
        said.pop("prompts_sha256", None)
    if not here["pamr_iterations"]:
        said.pop("pamr_dilations", None)
    absent = result["absent"]
    found = [
        _difference(name, here[name], value) for name, value in said.items() if here[name] != value
    ]
    return (*found, *([f"no label of {', '.join(absent)}"] if absent else []))


def _difference(name: str, here: Any, said: Any) -> str:
    if name == "names":
        pairs = list(zip_longest(here, said))
        other = [(own or said)[0] for own, said in pairs if own != said]
        more = f" and {len(other) - 3} more" if len(other) > 3 else ""
        return f"other words for {', '.join(other[:3])}{more}"
    if name == "prompts_sha256":
        return "other prompts of the same number"
    return f"{name} {here} instead of {said}"


@functools.cache
def _settings(method: str, backbone: str, dataset: str) -> dict[str, Any]:
    """The protocol of a method's own settings on a dataset; empty without a config of its name."""
    from sfp.clip.prompts import PROMPT_SETS, prompts_sha256
    from sfp.evaluation.config import CONFIGS, read_config, read_protocol, read_vocabulary

    name = _CONFIGS.get(dataset, dataset)
    path = CONFIGS / f"cfg_{name}.py"
    if not path.is_file():
        return {}
    cfg = read_config(path, [f"model.method={method}", f"model.clip={backbone}"])
    prompts = PROMPT_SETS[cfg.model.get("prompts", "imagenet80")]
    said = read_protocol(cfg.model).as_dict()
    said |= dict(short_side=cfg.short_side, names=read_vocabulary(cfg.model).words)
    said |= dict(prompts=len(prompts), prompts_sha256=prompts_sha256(prompts), precision="fp32")
    images = VAL_SCENES if name == "toyland" else LAYOUTS[name].published
    said |= dict(images=images) if images else {}
    return json.loads(json.dumps(said))  # lists as results have them


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
        if entry.measured is None:
            lines.append(
                f"{entry.method}, {entry.backbone}: published in {entry.paper}; {entry.differs[0]}"
            )
            continue
        where = f"published in {entry.paper}, {entry.images} images" if entry.paper else ""
        notes = [where, *entry.differs] if where else list(entry.differs)
        if notes:
            lines.append(f"{entry.method}, {entry.backbone}, {entry.dataset}: {'; '.join(notes)}")
    return list(dict.fromkeys(lines))


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

    Measured, the published number in brackets below it in small print; notes as comments.
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
    notes = [f"% {note}" for note in _notes(entries)]
    lines = [start, r"\toprule", head, r"\midrule", *body, r"\bottomrule", end, *notes]
    return "\n".join(lines) + "\n"
