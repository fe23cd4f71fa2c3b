"""A run over many pictures: what is left is done by an engine, and what is done is noted."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfp.exports.png import read_provenance
from sfp.files import sweep, whole_file
from sfp.many.journal import Journal, Shard
from sfp.many.plan import Plan
from sfp.many.recipe import Recipe
from sfp.many.sources import Sources
from sfp.many.worker import Job, Outcome, Seconds, Worker

Units = Iterable[Sequence[Job]]

_NAMED = 20  # pictures that are told one by one
_LISTED = 1000  # failures in the summary


@dataclass
class Summary:
    """What a run did.

    Attributes:
        pictures: how many there are.
        done_before: how many of them were done.
        segmented, failed: how many were segmented now, and how many could not be.
        failures: the first thousand reasons.
        example: the stem of the results of one picture that is done, "" where there is none.
        wall: seconds of this run's work, without the start.
        seconds: where the processes' time went, all together.
        workers: how many processes.
    """

    pictures: int = 0
    done_before: int = 0
    segmented: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)
    example: str = ""
    wall: float = 0.0
    seconds: Seconds = field(default_factory=Seconds)
    workers: int = 1

    _begun: float = 0.0

    def begin(self) -> None:
        """The first model is there: the clock starts."""
        self._begun = self._begun or time.perf_counter()

    def end(self) -> None:
        self.wall = time.perf_counter() - self._begun if self._begun else 0.0

    def fail(self, reason: str) -> None:
        self.failed += 1
        self.failures += [reason] if self.failed <= _LISTED else []

    @property
    def share(self) -> dict[str, float]:
        """Of the processes' time: in the model, waiting for pictures, for the disk, for work."""
        every = max(self.seconds.all, 1e-9)
        parts = ("model", "reading", "writing", "idle")
        return {part: round(getattr(self.seconds, part) / every, 4) for part in parts}

    def as_dict(self) -> dict[str, Any]:
        return {
            "pictures": self.pictures,
            "done_before": self.done_before,
            "segmented": self.segmented,
            "failed": self.failed,
            "wall_seconds": round(self.wall, 3),
            "pictures_per_hour": round(3600 * self.segmented / max(self.wall, 1e-9), 1),
            "workers": self.workers,
            "share_of_time": self.share,
            "host": socket.gethostname(),
            "failures": self.failures,
        }

    def __str__(self) -> str:
        hourly = 3600 * self.segmented / max(self.wall, 1e-9)
        share = {part: f"{100 * value:.0f} %" for part, value in self.share.items()}
        return (
            f"{self.segmented} pictures in {self.wall:.1f} s, {hourly:.0f} an hour; of the time"
            f" {share['model']} in the model, {share['reading']} waiting for pictures,"
            f" {share['writing']} for the disk, {share['idle']} for work"
        )


Engine = Callable[[Units, Summary], Iterator[Outcome]]


def run(
    sources: Sources,
    out: Path,
    recipe: Recipe,
    engine: Engine | None = None,
    *,
    shard: Shard = (1, 1),
    fresh: bool = False,
    workers: int = 1,
    quiet: bool = False,
) -> Summary:
    """Segment the pictures of the sources that aren't done.

    Args:
        sources, out, recipe: what, where to, and how.
        engine: works on the units and calls ``Summary.begin`` once it has a model; this process
            alone if None.
        shard: which of how many shares of the pictures is this run's, from 1.
        fresh: also do again what is done.
        workers: how many processes the engine has.
        quiet: print nothing.

    Raises:
        SFPError: the folder is in use or can't be written, or the engine can't go on. A picture
            that can't be segmented is counted in the summary, and its reason printed.
    """
    summary = Summary(workers=workers)
    settings = {key: value for key, value in recipe.asked.items() if key != "device"}
    journal = Journal(out, settings, shard)
    with journal.held(fresh):
        if journal.was_killed:
            sweep(out)
        plan = Plan(sources, out, journal, recipe.endings, read_provenance, shard, fresh)
        units = iter(plan)
        first = next(units, None)
        with _Progress(plan, summary, quiet) as progress:
            if first is not None:
                if not quiet and sys.stderr.isatty():  # it takes seconds
                    print(f"loading {recipe.model} ...", file=sys.stderr)
                engine = engine or one_process(recipe, out, fresh)
                for outcome in engine(_chained(first, units, progress), summary):
                    if outcome.error:
                        summary.fail(outcome.error)
                    else:
                        journal.add(outcome.job.item, outcome.job.stem)
                        summary.example = outcome.job.stem
                        summary.done_before += outcome.was_done
                        summary.segmented += not outcome.was_done
                    progress.tell(outcome)
                summary.end()
            progress.tell_wrong()
        summary.pictures = plan.seen
        summary.example = summary.example or plan.example
        summary.done_before += plan.done
        if first is not None:
            file = journal.folder / f"summary-{shard[0]}-of-{shard[1]}.json"
            with whole_file(file) as partial:
                partial.write_text(json.dumps(summary.as_dict(), indent=1) + "\n")
    return summary


def one_process(recipe: Recipe, out: Path, fresh: bool = False) -> Engine:
    """This process alone, with threads that read and write."""

    def engine(units: Units, summary: Summary) -> Iterator[Outcome]:
        worker = Worker(recipe.build(), out, fresh, seconds=summary.seconds)
        summary.begin()
        yield from worker.work(units)

    return engine


def _chained(first: list[Job], units: Iterator[list[Job]], progress: _Progress) -> Iterator:
    yield first
    for unit in units:
        progress.skip_done()
        yield unit


class _Progress:
    """A bar with rate and time left, and a line for each of the first pictures.

    How many pictures there are is counted beside the work.
    """

    def __init__(self, plan: Plan, summary: Summary, quiet: bool):
        self.plan, self.summary, self.quiet = plan, summary, quiet
        self.told = self.skipped = self.wrong = 0
        self.bar: Any = None
        self.closed = False
        self.counter = threading.Thread(target=self._count, daemon=True)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.closed = True
        if self.bar is not None:
            self.bar.close()

    def skip_done(self) -> None:
        """Put those that were done before into the bar, without an effect on the rate."""
        more = self.plan.done - self.skipped
        if self.bar is not None and more:
            self.skipped += more
            self._pass(more)

    def tell(self, outcome: Outcome) -> None:
        if self.quiet:
            return
        if self.bar is None:
            from sfp.progress import progress

            one = self.plan.seen == 1
            self.bar = progress(desc="segmenting", unit="image", smoothing=0.1, disable=one)
            self.counter.start()
            self.skip_done()
        self.tell_wrong()
        if outcome.was_done:
            self._pass(1)
            return
        self.told += not outcome.error
        if outcome.error and self.plan.seen > 1:  # else it is the program's own last word
            self.bar.write(outcome.error)
        elif not outcome.error and self.told <= _NAMED:
            self.bar.write(outcome.report)
        elif self.told == _NAMED + 1:
            self.bar.write("and so on: from here on only what goes wrong is named")
        self.bar.update()

    def tell_wrong(self) -> None:
        """What is wrong with the sources, which others pass."""
        for error in self.plan.wrong[self.wrong :]:
            self.summary.fail(str(error))
            if not self.quiet and (self.plan.seen or len(self.plan.wrong) > 1):
                print(error)
        self.wrong = len(self.plan.wrong)

    def _pass(self, more: int) -> None:
        if not self.bar.disable:
            self.bar.n += more
            self.bar.initial += more
            self.bar.last_print_n += more

    def _count(self) -> None:
        total = self.plan.total(lambda: self.closed)
        if not self.closed:
            self.bar.total = total
            self.bar.refresh()
