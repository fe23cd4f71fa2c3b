"""The papers' ablation tables as rows of the benchmark grid, beside their published numbers.

The tables are ``ablations.csv``, their rows ``ablation_rows.csv``; docs/ablations.md says how we
read rows that a paper names without an equation.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sfp.errors import unknown_choice
from sfp.evaluation.markdown import markdown_table
from sfp.evaluation.published import published_rows
from sfp.evaluation.tables import read_results

_CITY = {"city_scapes": "cityscapes"}  # a config's name to the papers' key


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: as ``paper_results.csv`` has it, or what it changes where no paper measured it.
        method: the grid's method string; None where no option does what the row says.
        missing: what is missing then.
        toyland: the method string on Toyland, where others stand in for weights that can't be
            downloaded; ``method`` if empty.
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
        backbones: the grid's and their names in the table; Toyland stands beside the first.
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
        return list(dict.fromkeys(filter(None, (row.method_on(dataset) for row in self.rows))))

    def published(self, row: Row, backbone: str, dataset: str) -> float | None:
        """What the paper prints, mIoU in percent; None where it prints nothing.

        On Toyland its average over the table's datasets, of the first backbone.
        """
        toy = dataset == "toyland"
        first = next(iter(self.backbones.values()))
        place = {
            "paper": self.paper,
            "table": self.table,
            "method": row.name,
            "backbone": first if toy else self.backbones.get(backbone),
            "dataset": "avg" if toy else _CITY.get(dataset, dataset),
            "metric": "mIoU",
        }
        found = (line for line in published_rows() if place.items() <= line.items())
        return next((float(line["value"]) for line in found), None)


def _read_ablations() -> dict[str, Ablation]:
    """``ablations.csv``, a line for each table, and ``ablation_rows.csv``, one for each row."""
    rows: dict[str, list[Row]] = {}
    for line in _lines("ablation_rows.csv"):
        row = Row(line["row"], line["method"] or None, line["missing"], line["toyland"])
        rows.setdefault(line["table"], []).append(row)
    return {
        line["name"]: Ablation(
            line["title"],
            line["paper"],
            line["table"] or None,
            tuple(rows[line["name"]]),
            dict(pair.split(" = ") for pair in line["backbones"].split("; ")),
            line["settings"],
        )
        for line in _lines("ablations.csv")
    }


def _lines(name: str) -> list[dict[str, str]]:
    with Path(__file__).with_name(name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


ABLATIONS = _read_ablations()


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
    return read_results(path, lambda result: result["mIoU"])


def ablation_table(
    ablation: Ablation,
    backbone: str,
    datasets: Sequence[str],
    measured: Mapping[tuple[str, str, str], float | None],
) -> str:
    """A table in Markdown: each row's mIoU and its change against the first row that has one.

    Args:
        ablation: the table.
        backbone: of the grid.
        datasets: names of configs.
        measured: mIoU in percent by (method string, backbone, dataset); None where an evaluation
            failed.
    """
    head, columns = ["row", "method"], []
    for dataset in datasets:
        own, published = _columns(ablation, backbone, dataset, measured)
        head += [f"#{dataset}", "#change"]
        columns.append(own)
        if ablation.table:
            head += ["#paper's average" if dataset == "toyland" else "#paper", "#change"]
            columns.append(published)
    body = []
    for i, row in enumerate(ablation.rows):
        method = row.method_on(datasets[0])
        cells = [text for values in columns for text in _beside(values, i)]
        body.append([row.name, f"`{method}`" if method else "no option", *cells])
    return markdown_table(head, body)


def equal_signs(
    ablation: Ablation,
    backbone: str,
    dataset: str,
    measured: Mapping[tuple[str, str, str], float | None],
) -> tuple[int, int]:
    """How many changes, as printed, have the published one's sign, and how many the paper prints.

    A published change of 0.0 has no sign and doesn't count.
    """
    own, published = _columns(ablation, backbone, dataset, measured)
    changes = [(_beside(own, i)[1], _beside(published, i)[1]) for i in range(len(own))]
    pairs = [(float(a), float(b)) for a, b in changes if a and b and float(b)]
    return sum(a * b > 0 for a, b in pairs), len(pairs)


def _columns(
    ablation: Ablation,
    backbone: str,
    dataset: str,
    measured: Mapping[tuple[str, str, str], float | None],
) -> tuple[list[float | None], list[float | None]]:
    """Each row's measured and published mIoU."""
    rows, table = ablation.rows, ablation.table
    own = [measured.get((row.method_on(dataset) or "", backbone, dataset)) for row in rows]
    return own, [ablation.published(row, backbone, dataset) if table else None for row in rows]


def missing_rows(ablation: Ablation) -> str:
    """Which rows can't be measured and why, as a Markdown list."""
    names: dict[str, list[str]] = {}
    for row in ablation.rows:
        if row.method is None:
            names.setdefault(row.missing, []).append(row.name)
    lines = (f"- Not measured: {', '.join(rows)}: {why}.\n" for why, rows in names.items())
    return "".join(lines)


def _beside(values: Sequence[float | None], place: int) -> tuple[str, str]:
    """A value, and how far it lies above the first row's that has one."""
    first = next((i for i, value in enumerate(values) if value is not None), None)
    value = values[place]
    if value is None:
        return "", ""
    return f"{value:.1f}", "" if place == first else f"{value - values[first]:+.1f}"
