"""What the preparation of one dataset consists of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sfp.datasets.layouts import Layout
from sfp.datasets.preparation.download import Archive
from sfp.datasets.preparation.sources import Sources
from sfp.datasets.preparation.steps import Plan


@dataclass(frozen=True)
class Recipe:
    """How a dataset is made from what its owners ship.

    Args:
        plan: from the sources and the dataset's folder to the steps; it reads lists, and writes nothing.
        needed: patterns of the archives' members that ``plan`` looks for.
        obtain: what the owners ship and where, as a sentence's end after "needs".
        archives: what may be fetched without registration.
    """

    plan: Callable[[Sources, Path, Layout], Plan]
    needed: tuple[str, ...]
    obtain: str
    archives: tuple[Archive, ...] = ()
