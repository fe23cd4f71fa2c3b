"""One process at work: readers before the model and writers behind it, so that it never waits."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sfp.errors import SFPError
from sfp.many.items import Item
from sfp.many.recipe import Asked

if TYPE_CHECKING:
    import numpy as np

    from sfp.result import Segmentation

Value = TypeVar("Value")
_WAITING = 256 << 20  # bytes of pictures that wait for the model, and of results for the disk


@dataclass(frozen=True)
class Job:
    """A picture and the stem of its results."""

    item: Item
    stem: str


@dataclass(frozen=True)
class Outcome:
    """What became of a picture.

    Attributes:
        report: what was found, in a line.
        error: why there is no result, "" where there is one.
        was_done: whether it had been done with the same settings before.
    """

    job: Job
    report: str = ""
    error: str = ""
    was_done: bool = False


@dataclass
class Seconds:
    """Where one process's time went.

    Attributes:
        model: the model's own, with all that lies between a picture and its labels.
        reading, writing: that it waited for pictures, and for results to be written.
        idle: that it had none to do.
        all: from its first picture to its last file.
    """

    model: float = 0.0
    reading: float = 0.0
    writing: float = 0.0
    idle: float = 0.0
    all: float = 0.0

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Seconds)))


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _threads() -> int:
    return min(8, max(2, cores()))


@dataclass
class Worker:
    """Segments units of pictures and writes their results.

    The pictures of a unit share batches with one another and with no others, so that the same unit
    gives the same labels wherever it is worked on.

    Attributes:
        asked: what is asked of each picture.
        out: the folder of the results.
        fresh: do also what its files say is done.
        readers, writers: threads, besides those of the model.
        seconds: where the time went.
    """

    asked: Asked
    out: Path
    fresh: bool = False
    readers: int = field(default_factory=_threads)
    writers: int = field(default_factory=_threads)
    seconds: Seconds = field(default_factory=Seconds)

    def work(self, units: Iterable[Sequence[Job]]) -> Iterator[Outcome]:
        """What became of each picture of the units, as soon as its files are on the disk.

        At any time at most 256 MiB of pictures wait for the model, and one for each thread beside
        them; and as much of results for the disk. The next unit is taken while one is worked on.

        Raises:
            SFPError: results can't be written, or the model can't go on.
        """
        begun = time.perf_counter()
        with ExitStack() as stack:
            writers = stack.enter_context(_pool(self.writers, "write results"))
            is_done = (lambda job: False) if self.fresh else self._is_done
            read = stack.enter_context(_Reading(units, self.readers, is_done))
            written: deque[_Written] = deque()
            for unit, done in self._timed("idle", read):
                yield from (Outcome(job, was_done=True) for job in done)
                pictures = self._timed("reading", (read.wait_for(each) for each in unit))
                for (job, _), results in zip(unit, self._segment(pictures), strict=True):
                    if isinstance(results, SFPError):
                        yield Outcome(job, error=str(results))
                        continue
                    size = sum(each.labels.nbytes + each.image.nbytes for each in results)
                    own = (self.out, job.stem, job.item, results)
                    written.append(_Written(job, writers.submit(self.asked.write, *own), size))
                    del own, results
                    while _is_much(written, self.writers) or (written and written[0].future.done()):
                        yield self._taken(written)
                while written and read.is_waiting:  # whoever gives units may wait for these
                    yield self._taken(written)
            while written:
                yield self._taken(written)
        self.seconds.all += time.perf_counter() - begun

    def _is_done(self, job: Job) -> bool:
        """Whether its files are there and say that they are these."""
        return self.asked.is_done(self.out, job.stem, job.item)

    def _segment(self, pictures: Iterator[_Read]) -> Iterator[list[Segmentation] | SFPError]:
        """Results, with the time that they took less that of waiting for pictures."""
        answers = self.asked.segment(pictures)
        while True:
            begun, waited = time.perf_counter(), self.seconds.reading
            results = next(answers, None)
            self.seconds.model += time.perf_counter() - begun - (self.seconds.reading - waited)
            if results is None:
                return
            yield results

    def _taken(self, written: deque[_Written]) -> Outcome:
        begun = time.perf_counter()
        first = written.popleft()
        report = first.future.result()
        self.seconds.writing += time.perf_counter() - begun
        return Outcome(first.job, report)

    def _timed(self, what: str, values: Iterator[Value]) -> Iterator[Value]:
        """The values, with the time that was waited for each."""
        while True:
            begun = time.perf_counter()
            value = next(values, None)
            own = getattr(self.seconds, what) + time.perf_counter() - begun
            setattr(self.seconds, what, own)
            if value is None:
                return
            yield value


@dataclass(frozen=True)
class _Written:
    """Results on their way to the disk."""

    job: Job
    future: Future
    bytes: int


def _is_much(written: deque[_Written], writers: int) -> bool:
    size = sum(each.bytes for each in written)
    return len(written) > 1 and (len(written) > 4 * writers or size > _WAITING)


@dataclass(frozen=True)
class _Read:
    """A picture that was read, or what is wrong with it; it is a ``StoredImage``."""

    path: str
    pixels: np.ndarray | SFPError

    def read_pixels(self) -> np.ndarray:
        if isinstance(self.pixels, SFPError):
            raise self.pixels
        return self.pixels


class _Reading:
    """Units one after the other, whose pictures are read ahead by threads as far as there is room.

    A thread of its own takes the units, since they may come late.
    """

    def __init__(
        self,
        units: Iterable[Sequence[Job]],
        readers: int,
        is_done: Callable[[Job], bool],
    ):
        self.most, self.is_done = 4 * readers, is_done
        self.waiting = self.bytes = 0
        self.closed = False
        self.changed = threading.Condition()
        self.ready: queue.SimpleQueue = queue.SimpleQueue()
        self.readers = _pool(readers, "read pictures")
        self.lane = _pool(1, "read frames")
        self.feeder = threading.Thread(target=self._feed, args=(units,), daemon=True)

    def __enter__(self) -> _Reading:
        self.feeder.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        for pool in (self.readers, self.lane):
            pool.shutdown(wait=False, cancel_futures=True)

    def __iter__(self) -> _Reading:
        return self

    def __next__(self) -> tuple[list[tuple[Job, Future]], list[Job]]:
        """Pictures that are being read, and such as are done."""
        unit = self.ready.get()
        if unit is None:
            raise StopIteration
        if isinstance(unit, BaseException):
            raise unit
        return unit

    @property
    def is_waiting(self) -> bool:
        """Whether the next unit hasn't come yet."""
        return self.ready.empty()

    def wait_for(self, own: tuple[Job, Future]) -> _Read:
        job, future = own
        pixels = future.result()
        with self.changed:
            self.waiting -= 1
            self.bytes -= getattr(pixels, "nbytes", 0)
            self.changed.notify_all()
        return _Read(job.item.path, pixels)

    def _feed(self, units: Iterable[Sequence[Job]]) -> None:
        try:
            for unit in units:
                done = [job for job in unit if self.is_done(job)]
                jobs = [(job, Future()) for job in unit if job not in done]
                self.ready.put((jobs, done))
                for job, future in jobs:
                    with self.changed:
                        self.changed.wait_for(self._has_room)
                        if self.closed:
                            return
                        self.waiting += 1
                        pool = self.lane if job.item.lane else self.readers
                        pool.submit(self._read, job.item, future)
            self.ready.put(None)
        except BaseException as error:  # it is raised where the units are asked for
            self.ready.put(error)

    def _has_room(self) -> bool:
        return self.closed or (self.waiting < self.most and self.bytes < _WAITING)

    def _read(self, item: Item, future: Future) -> None:
        try:
            pixels = item.read_pixels()
        except SFPError as error:
            pixels = error
        except BaseException as error:  # ours, or want of memory
            future.set_exception(error)
            return
        with self.changed:
            self.bytes += getattr(pixels, "nbytes", 0)
        future.set_result(pixels)


def _pool(threads: int, name: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, name)
