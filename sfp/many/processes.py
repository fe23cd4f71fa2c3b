"""Several processes of one machine, fed by this one: each has its model, and takes what is next."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from sfp.errors import SFPError
from sfp.files import sweep
from sfp.many.recipe import Recipe
from sfp.many.run import Engine, Summary, Units
from sfp.many.worker import Job, Outcome, Seconds, Worker, cores

_HELD = 2  # units that a process has: one to work on, one to read
_TRIES = 3  # of a picture whose process ends


@dataclass(frozen=True)
class _Ready:
    """A process has its model."""


@dataclass(frozen=True)
class _Fatal:
    """A process can't go on."""

    reason: str


@dataclass(eq=False)
class _Member:
    """A process as its parent sees it.

    Attributes:
        held: the unfinished pictures of each of its units.
    """

    index: int
    process: Any
    units: Connection
    outcomes: Connection
    ready: bool = False
    held: list[dict[str, Job]] = field(default_factory=list)


def several_processes(recipe: Recipe, out: Path, count: int, fresh: bool = False) -> Engine:
    """``count`` processes; on the GPUs in turn, else each with its share of the cores.

    A process that is killed is started again, and its pictures are given out again; a picture whose
    process ends three times fails.

    Raises:
        SFPError: ``count`` is less than 1.
    """
    if count < 1:
        raise SFPError(f"--processes {count} must be at least 1.")

    def engine(units: Units, summary: Summary) -> Iterator[Outcome]:
        yield from _Crowd(recipe, out, count, fresh, summary).work(iter(units))

    return engine


class _Crowd:
    def __init__(self, recipe: Recipe, out: Path, count: int, fresh: bool, summary: Summary):
        self.recipe, self.out, self.count, self.fresh = recipe, out, count, fresh
        self.summary = summary
        self.again: deque[list[Job]] = deque()  # what dead processes left
        self.tries: dict[str, int] = {}
        self.left_files = False  # by a process that was killed

    def work(self, units: Iterator[Sequence[Job]]) -> Iterator[Outcome]:
        members = [self._start(index) for index in range(self.count)]
        try:
            while True:
                for held in range(_HELD):  # no process gets a second one before all have one
                    for member in members:
                        if len(member.held) == held and (member.ready or not held):
                            self._give(member, self._next(units))
                if not any(member.held for member in members):
                    break
                by = {member.outcomes: member for member in members}
                for connection in wait(by):
                    member = by[connection]
                    try:
                        found = connection.recv()
                    except (EOFError, OSError):
                        yield from self._bury(member)
                        members[members.index(member)] = self._start(member.index)
                        continue
                    if (outcome := self._heard(member, found)) is not None:
                        yield outcome
            for member in members:
                self._send(member, None)
            for member in members:
                self._farewell(member)
                member.process.join(10)
        finally:
            for member in members:
                if member.process.is_alive():
                    member.process.kill()
                    self.left_files = True
                member.process.join()
            if self.left_files:
                sweep(self.out)

    def _start(self, index: int) -> _Member:
        context = multiprocessing.get_context("spawn")
        taken, units = context.Pipe(duplex=False)
        outcomes, told = context.Pipe(duplex=False)
        more = (self.recipe, self.out, self.fresh, index, self.count)
        process = context.Process(target=_main, args=(taken, told, *more), daemon=True)
        process.start()
        taken.close()
        told.close()  # so that the end of the process is the end of the pipe
        return _Member(index, process, units, outcomes)

    def _next(self, units: Iterator[Sequence[Job]]) -> Sequence[Job] | None:
        return self.again.popleft() if self.again else next(units, None)

    def _give(self, member: _Member, unit: Sequence[Job] | None) -> None:
        if unit is None:
            return
        member.held.append({job.item.key: job for job in unit})
        self._send(member, unit)

    def _send(self, member: _Member, unit: Sequence[Job] | None) -> None:
        with contextlib.suppress(OSError):  # it has ended, which the other pipe tells
            member.units.send(unit)

    def _heard(self, member: _Member, found: object) -> Outcome | None:
        if isinstance(found, _Fatal):
            raise SFPError(found.reason)
        if isinstance(found, _Ready):
            member.ready = True
            self.summary.begin()
            return None
        assert isinstance(found, Outcome)
        for unit in member.held:
            unit.pop(found.job.item.key, None)
        member.held = [unit for unit in member.held if unit]
        return found

    def _bury(self, member: _Member) -> Iterator[Outcome]:
        """Give out again what a dead process had; raises SFPError where no model could be had."""
        member.process.join()
        self.left_files = True
        code = member.process.exitcode or 0
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        if not member.ready:
            raise SFPError(
                f"A process ended ({how}) before it had its model; give fewer --processes, or see"
                " what one alone says."
            )
        for unit in member.held:
            for job in unit.values():
                tries = self.tries[job.item.key] = self.tries.get(job.item.key, 0) + 1
                if tries == _TRIES:
                    reason = f"{job.item.file}: {tries} processes ended ({how}) at work on it"
                    yield Outcome(
                        job, error=f"{reason}; make the picture smaller, or leave it out."
                    )
                elif tries > 1:  # alone, so that it harms no others
                    self.again.append([job])
            first = [job for job in unit.values() if self.tries[job.item.key] == 1]
            self.again += [first] if first else []

    def _farewell(self, member: _Member) -> None:
        """Take what a process says of its time."""
        try:
            while not isinstance(found := member.outcomes.recv(), Seconds):
                self._heard(member, found)
            self.summary.seconds += found
        except (EOFError, OSError):  # killed at the very end
            pass


def _main(
    taken: Connection,
    told: Connection,
    recipe: Recipe,
    out: Path,
    fresh: bool,
    index: int,
    count: int,
) -> None:
    """A process's life: its model, units until there are no more, and the time that it took."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    import torch

    def units() -> Iterator[Sequence[Job]]:
        while True:
            try:
                unit = taken.recv()
            except (EOFError, OSError):  # the parent was killed
                os._exit(1)
            if unit is None:
                return
            yield unit

    try:
        torch.set_num_threads(max(1, min(torch.get_num_threads(), cores() // count)))
        worker = Worker(replace(recipe, device=_device(recipe.device, index)).build(), out, fresh)
        told.send(_Ready())
        for outcome in worker.work(units()):
            told.send(outcome)
        told.send(worker.seconds)
    except BrokenPipeError:
        os._exit(1)
    except SFPError as error:
        told.send(_Fatal(str(error)))


def _device(given: str | None, index: int) -> str | None:
    """The GPUs in turn, unless a device is named."""
    import torch

    if given in (None, "cuda") and torch.cuda.device_count():
        return f"cuda:{index % torch.cuda.device_count()}"
    return given
