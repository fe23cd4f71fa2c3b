"""Which pictures are left to do, and where their results go."""

from __future__ import annotations

import functools
import os
import zlib
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

from sfp.errors import SFPError
from sfp.many.items import Item
from sfp.many.journal import Journal, Shard
from sfp.many.sources import Sources
from sfp.many.worker import Job

UNIT = 16  # pictures that share batches
Record = dict[str, Any]


class Plan:
    """The pictures of the sources that aren't done, in units.

    Units are made of all pictures of the shard, done or not, so that going on after an
    interruption puts the same pictures together. A picture that comes twice is done once.

    Args:
        sources: where they come from.
        out: the folder of the results.
        journal: what is done.
        endings: of a picture's files, the first of the one with the record.
        read_record: what a file says of how it was made; None where it says nothing.
        shard: which pictures are this process's own.
        fresh: also those that are done.

    Attributes:
        seen: how many pictures have come up so far.
        done: how many of them were done.
        example: the stem of one of those.
        wrong: what is wrong with the sources.
    """

    def __init__(
        self,
        sources: Sources,
        out: Path,
        journal: Journal,
        endings: list[str],
        read_record: Callable[[Path], Record | None],
        shard: Shard = (1, 1),
        fresh: bool = False,
    ):
        self.sources, self.out, self.journal, self.endings = sources, out, journal, endings
        self.read_record, self.shard, self.fresh = read_record, shard, fresh
        self.seen = self.done = 0
        self.example = ""
        self.wrong: list[SFPError] = []
        self._keys: set[int] = set()
        self._stems: set[int] = set()
        self._folder, self._one_folder = "", sources.one_folder
        self._files = functools.lru_cache(maxsize=8)(self._list)

    def __iter__(self) -> Iterator[list[Job]]:
        """Units of at most 16 pictures that are left."""
        unit: list[Job] = []
        for found in self.sources:
            if isinstance(found, SFPError):
                self.wrong += [found] if self._is_own(str(found)) else []
                continue
            known = self.journal.has(found)
            job = self._job(found, known)
            if job is None or not self._is_own(found.place):
                continue
            self.seen += 1
            if known and not self.fresh and self._has_files(job.stem):
                self.done += 1
                self.example = job.stem
            else:
                unit.append(job)
            if self.seen % UNIT == 0 and unit:
                yield unit
                unit = []
        if unit:
            yield unit

    def total(self, closed: Callable[[], bool] = lambda: False) -> int:
        """How many pictures there are in all, counted until ``closed``; the slow way to know."""
        number = 0
        for found in self.sources:
            if closed():
                break
            number += isinstance(found, Item) and self._is_own(found.place)
        return number

    def _is_own(self, place: str) -> bool:
        number, shards = self.shard
        return shards == 1 or zlib.crc32(place.encode("utf-8", "replace")) % shards == number - 1

    def _job(self, item: Item, known: bool) -> Job | None:
        """The item with the stem of its results: the old ones' if it has any, else one that is
        free; None if it came before.
        """
        folder = os.path.dirname(item.name)
        if self._one_folder and folder != self._folder:  # nothing comes twice
            self._folder = folder
            self._keys.clear()
            self._stems.clear()
        if hash(item.key) in self._keys:
            return None
        self._keys.add(hash(item.key))
        stem = self.journal.stem_of(item)
        if not stem:
            stem = next(each for each in _stems(item) if self._is_free(each, item, known))
        self._stems.add(hash(stem))
        return Job(item, stem)

    def _is_free(self, stem: str, item: Item, known: bool) -> bool:
        if hash(stem) in self._stems:
            return False
        if known or not self._exists(f"{stem}{self.endings[0]}"):
            return True
        record = self.read_record(self.out / f"{stem}{self.endings[0]}") or {}
        source = record.get("source")
        return isinstance(source, dict) and source.get("path") == item.key

    def _has_files(self, stem: str) -> bool:
        return all(self._exists(f"{stem}{ending}") for ending in self.endings)

    def _exists(self, name: str) -> bool:
        """By the folder's listing, which is read once: a million questions are slow."""
        folder, _, file = name.rpartition("/")
        return file in self._files(folder)

    def _list(self, folder: str) -> frozenset[str]:
        try:
            return frozenset(os.listdir(self.out / folder))
        except OSError:
            return frozenset()


def _stems(item: Item) -> Iterator[str]:
    """photo, photo_jpg, photo_jpg-2, photo_jpg-3 ..."""
    yield item.stem
    longer = f"{item.stem}_{os.path.splitext(item.name)[1].lstrip('.').lower()}"
    yield longer
    for number in count(2):
        yield f"{longer}-{number}"
