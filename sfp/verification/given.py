"""What the command line of ``sfp verify`` gives, checked before torch is imported."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfp.errors import SFPError
from sfp.files import find_config


@dataclass(frozen=True)
class Given:
    """The command line.

    Attributes:
        out: folder of the report.
        model, pretrained, weights: see ``load_clip``; None where they were not given.
        device: None where it was not given.
        precisions, cpu_precisions: that are compared on the device and on the CPU.
        images: files with the word for each.
        data_roots: folders by the names of configs.
        datasets: names of configs that are measured where they are prepared; all if empty.
        methods: names; all if empty.
        images_each: at most so many images of each dataset, None for all.
        minutes: of the whole run, None for no bound.
        published: a file with other published numbers, None for the papers'.
        questions: numbers of SFP's open questions that are swept; all if empty.
        debug: raise a part's error.
    """

    out: Path
    model: str | None = None
    pretrained: str | None = None
    weights: dict[str, Any] = field(default_factory=dict)
    device: str | None = None
    precisions: tuple[str, ...] = ("fp32", "bf16", "fp16")
    cpu_precisions: tuple[str, ...] = ("bf16",)
    images: tuple[tuple[Path, str], ...] = ()
    data_roots: dict[str, str] = field(default_factory=dict)
    datasets: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    images_each: int | None = None
    minutes: float | None = None
    published: Path | None = None
    questions: tuple[str, ...] = ()
    debug: bool = False


def read_images(given: Sequence[str]) -> tuple[tuple[Path, str], ...]:
    """Photographs with their words: ``FILE=word``, a CSV with the columns file and word, or a JSON
    object of words by file. A list's files are looked for beside it.

    Raises:
        SFPError: no such file, or no word for one.
    """
    found: list[tuple[Path, str]] = []
    for text in given:
        path, ending = Path(text), Path(text).suffix.lower()
        if ending in (".csv", ".json") and "=" not in text:
            found += _listed(path)
            continue
        file, equals, word = text.rpartition("=")
        if not equals or not file or not word.strip():
            raise SFPError(
                f"--images got {text!r}; write FILE=word, such as cat.jpg=cat, or name a .csv with"
                " the columns file and word."
            )
        found.append((Path(file), word.strip()))
    for file, _ in found:
        if not file.is_file():
            raise SFPError(f"There is no image file {file} (--images); check the path.")
    return tuple(found)


def _listed(path: Path) -> list[tuple[Path, str]]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".json":
            rows = [(str(file), str(word)) for file, word in json.loads(text).items()]
        else:
            rows = [(row["file"], row["word"]) for row in csv.DictReader(text.splitlines())]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SFPError(
            f"The list {path} (--images) can't be read ({type(error).__name__}: {error}); give a"
            " .csv with the columns file and word, or a .json of words by file."
        ) from error
    return [(path.parent / file, word.strip()) for file, word in rows]


def read_roots(given: Sequence[str]) -> dict[str, str]:
    """Data roots by the name of a config, from ``NAME=FOLDER``.

    Raises:
        SFPError: no such config, or no folder.
    """
    found = {}
    for text in given:
        name, equals, folder = text.partition("=")
        if not equals or not folder:
            raise SFPError(f"--data-root got {text!r}; write NAME=FOLDER, such as voc21=VOC2012.")
        find_config(name)
        found[name] = folder
    return found
