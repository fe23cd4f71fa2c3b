"""Step g: which reading of SFP's open questions gives its Table 2.

Table 2 has four rungs: ClearCLIP, with SOM, with SAE, with HAI, on VOC21 and ADE20K. Each reading
of ``ablation_rows.csv`` (sfp-questions, methods.md 1.11) changes one answer; it is measured on the
rungs that it touches, on the same images as the default reading. The one that lies nearest to the
printed numbers is proposed; where several questions have a better answer, these together, too.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sfp.experiments.ablations import ABLATIONS
from sfp.files import whole_file
from sfp.options import split_spec
from sfp.verification.figures import folder, published_weights, rows_of
from sfp.verification.findings import LEFT_OUT, OK, Finding, failed, impossible, passed
from sfp.verification.session import Session, allowance

DATASETS = ("voc21", "ade20k")
RUNGS = ("baseline (ClearCLIP)", "baseline+SOM", "baseline+SOM+SAE", "baseline+SOM+SAE+HAI")
DEFAULT = "as read here"
# the questions in the order in which they tell most, as methods.md 1.11 suggests
_ORDER = ("9", "8", "11", "4", "3", "5", "6", "7", "14", "17", "12", "13", "1", "2", "10")
_LEAST = 30.0  # seconds that a measurement is worth beginning for
_COUNTS = "counts.npz"
_NONE = "none"  # the row without purification is no reading


@dataclass(frozen=True)
class Reading:
    """An answer to one or more of the questions.

    Attributes:
        name: as ``ablation_rows.csv`` has it.
        options: of SFP.
    """

    name: str
    options: tuple[str, ...] = ()

    @property
    def question(self) -> str:
        """The number of its first question."""
        return re.match(r"\d*", self.name)[0]

    @property
    def rungs(self) -> tuple[str, ...]:
        """The methods of Table 2's four rungs: an option counts from the rung on that it touches.

        SAE's count from the third on, HAI's on the fourth alone, all others from the second.
        """
        hai = [option for option in self.options if option.startswith("hai_")]
        sae = [option for option in self.options if option.startswith("sae")]
        som = [option for option in self.options if option not in (*hai, *sae)]
        return (
            "ClearCLIP",
            _spec("ClearCLIP", "purify=True", "pm=SOM", *som),
            _spec("SFP", "hai=False", *som, *sae),
            _spec("SFP", *som, *sae, *hai),
        )


def _spec(name: str, *options: str) -> str:
    return f"{name}:{','.join(options)}" if options else name


def readings(questions: Sequence[str] = ()) -> list[Reading]:
    """The default first, then the others, the most telling question first.

    Args:
        questions: numbers of those that are asked, all if empty.
    """
    found = []
    for row in ABLATIONS["sfp-questions"].rows:
        options = tuple(split_spec(row.method)[1])
        if row.name.startswith(_NONE) or "hai=False" in options:
            continue
        found.append(Reading(row.name, options))
    first, *others = found
    asked = [own for own in others if not questions or own.question in questions]
    return [first, *sorted(asked, key=lambda own: _ORDER.index(own.question))]


def run(session: Session) -> None:
    if not session.has_mmseg("g"):
        return
    from sfp.verification.datasets import prepared_configs

    here = [name for name in prepared_configs(session)[0] if name in DATASETS]
    targets = {name: targets_of(session, name) for name in here}
    targets = {name: own for name, own in targets.items() if own}
    if not targets:
        session.check("g", "readings", lambda: impossible(why_not(session, here)))
        return
    sweep = Sweep(session, targets)
    sweep.run(readings(session.given.questions))
    if sweep.measured:
        images = {str(cell): len(own) for cell, own in sweep.measured.items()}
        session.check("g", "proposal", sweep.proposal, measured=images)


def why_not(session: Session, here: list[str]) -> str:
    if not here:
        return f"neither {' nor '.join(DATASETS)} is prepared"
    if session.given.published:
        return f"{session.given.published.name} has no row {RUNGS[-1]!r} on {' or '.join(here)}"
    known = published_weights(session)
    title = known.title if known else "these weights"
    return f"Table 2 is of OpenAI's ViT-B/16, and not of {title}; --published names other numbers"


def targets_of(session: Session, dataset: str) -> tuple[float, ...]:
    """Table 2's four numbers on a dataset; empty where there are none for these weights."""
    if session.given.published:
        rows: Iterable[Mapping[str, str]] = rows_of(session.given.published)
    else:
        from sfp.evaluation.published import published_rows

        known = published_weights(session)
        if known is None or (known.model, known.tag) != ("ViT-B-16", "openai"):
            return ()
        rows = (r for r in published_rows() if (r["paper"], r["table"]) == ("SFP", "Tab2"))
    values = {
        row["method"]: float(row["value"])
        for row in rows
        if row["dataset"] == dataset and row["metric"] == "mIoU"
    }
    return tuple(values[rung] for rung in RUNGS) if set(RUNGS) <= values.keys() else ()


class Sweep:
    """The readings' rungs on the datasets, each measured once.

    Attributes:
        targets: Table 2's numbers by dataset.
        measured: what was measured, by method and dataset.
    """

    def __init__(self, session: Session, targets: Mapping[str, tuple[float, ...]]):
        self.session, self.targets = session, targets
        self.measured: dict[tuple[str, str], Any] = {}
        self.readings: list[Reading] = []

    def run(self, every: list[Reading]) -> None:
        """Measure reading after reading while there is time, then the best answers together."""
        skipped = []
        until = time.monotonic() + self.session.left()
        for place, reading in enumerate(every):
            left = until - time.monotonic()
            cells = len({cell for own in every[place:] for cell in self._missing(own)})
            if not self._do(reading, left, cells):
                skipped.append(reading.name)
        if skipped:
            words = f"no time for {len(skipped)} readings: {'; '.join(skipped)}"
            self.session.check("g", "readings without time", lambda: Finding(LEFT_OUT, words))
        joint = self.joint()
        if joint is not None:
            self._do(joint, until - time.monotonic(), len(self._missing(joint)))

    def _missing(self, reading: Reading) -> list[tuple[str, str]]:
        """The reading's measurements that aren't there yet."""
        cells = (
            (rung, dataset) for rung in dict.fromkeys(reading.rungs) for dataset in self.targets
        )
        return [cell for cell in cells if cell not in self.measured]

    def _do(self, reading: Reading, left: float, cells: int) -> bool:
        """Measure a reading; whether there was time."""
        first = reading.name == DEFAULT
        for number, (method, dataset) in enumerate(self._missing(reading)):
            name = f"{method}, {dataset}"
            depends = dict(
                images=self.session.given.images_each,
                minutes=self.session.given.minutes,
                root=self.session.given.data_roots.get(dataset),
            )
            begins = first or left == float("inf") or left > _LEAST
            if not begins and not self.session.has("g", name, **depends):
                return False
            seconds = allowance(left, cells - number, _LEAST)
            finding = self.session.check(
                "g",
                name,
                lambda method=method, dataset=dataset, seconds=seconds: self._measure(
                    method, dataset, seconds
                ),
                **depends,
            )
            if finding.verdict == OK:
                self._recall(method, dataset)
            left = min(left, self.session.left())
        if all((m, d) in self.measured for m in reading.rungs for d in self.targets):
            self.readings.append(reading)
        return True

    def _config(self, method: str, dataset: str) -> Any:
        from sfp.verification.datasets import config_of, root_option, weights_options

        session = self.session
        overrides = [*weights_options(session), *root_option(session, dataset)]
        return config_of(dataset, method, [*overrides, "settings=common"])

    def _folder(self, method: str, dataset: str) -> Path:
        return folder(self.session, f"readings {method}", dataset)

    def _measure(self, method: str, dataset: str, seconds: float) -> Finding:
        from sfp.verification.datasets import measure

        cfg, limit = self._config(method, dataset), self.session.given.images_each
        if same := [own for (_, other), own in self.measured.items() if other == dataset]:
            limit, seconds = min(map(len, same)), float("inf")  # all on the first one's images
        found = measure(cfg, self._folder(method, dataset), limit, seconds)
        with whole_file(self._folder(method, dataset) / _COUNTS) as partial:
            np.savez_compressed(partial, counts=found.counts, names=np.array(found.names))
        targets = {self.targets[dataset][i] for i in self._places(method)}
        beside = (
            f"; Table 2 has {' or '.join(f'{t:g}' for t in sorted(targets))}" if targets else ""
        )
        words = f"{found.mIoU:.2f} mIoU on {found.share}{beside}"
        return passed(words, mIoU=found.mIoU, images=len(found.names), of=found.images)

    def _places(self, method: str) -> list[int]:
        """The rungs on which the default reading has a method."""
        return [i for i, rung in enumerate(Reading(DEFAULT).rungs) if rung == method]

    def _recall(self, method: str, dataset: str) -> None:
        """What was measured, now or by an earlier run."""
        try:
            with np.load(self._folder(method, dataset) / _COUNTS) as kept:
                counts, names = kept["counts"], kept["names"].tolist()
        except (OSError, ValueError, KeyError):
            return
        self.measured[method, dataset] = dict(zip(names, counts, strict=True))

    # ------------------------------------------------------------------ what they come to
    def common(self, dataset: str, readings: Iterable[Reading]) -> list[str]:
        """The images of a dataset that all measurements of these readings have."""
        every = [self.measured[rung, dataset] for own in readings for rung in own.rungs]
        return sorted(set.intersection(*(set(own) for own in every)))

    def counts(self, method: str, dataset: str, names: list[str]) -> np.ndarray:
        own = self.measured[method, dataset]
        return np.stack([own[name] for name in names])

    def figures(self, reading: Reading) -> dict[str, list[float]]:
        """mIoU of the four rungs by dataset, over the images that all readings have."""
        from sfp.verification.datasets import miou

        found = {}
        for dataset in self.targets:
            names = self.common(dataset, self.readings)
            found[dataset] = [
                miou(self.counts(rung, dataset, names).sum(0)) for rung in reading.rungs
            ]
        return found

    def error(self, reading: Reading) -> float:
        """The mean distance of the rungs that SFP adds from Table 2's, each beside the measured
        baseline's own: what a share of images or a machine shifts, it shifts in all of them.
        """
        off = []
        for dataset, own in self.figures(reading).items():
            target = self.targets[dataset]
            off += [abs((own[i] - own[0]) - (target[i] - target[0])) for i in (1, 2, 3)]
        return sum(off) / len(off)

    def joint(self) -> Reading | None:
        """Of each question the answer that lies nearest, if two or more do better than the
        default's.
        """
        default = next((own for own in self.readings if own.name == DEFAULT), None)
        if default is None:
            return None
        usual, best = self.error(default), {}
        for reading in self.readings:
            question, error = reading.name.partition(":")[0], self.error(reading)
            if error < usual and error < best.get(question, (usual, None))[0]:
                best[question] = (error, reading)
        chosen: dict[str, str] = {}
        for _, reading in sorted(best.values(), key=lambda pair: pair[0]):
            for option in reading.options:
                chosen.setdefault(option.partition("=")[0], option)
        if len(best) < 2:
            return None
        questions = ", ".join(best)
        return Reading(f"the best answers to {questions} together", tuple(chosen.values()))

    def proposal(self) -> Finding:
        """The reading that fits Table 2 best, and whether that is more than chance."""
        default = next((own for own in self.readings if own.name == DEFAULT), None)
        if default is None:
            return failed("the default reading could not be measured on all four rungs")
        ranked = sorted(self.readings, key=self.error)
        best, errors = ranked[0], {own.name: self.error(own) for own in ranked}
        images = {name: len(self.common(name, self.readings)) for name in self.targets}
        share = ", ".join(f"{count} images of {name}" for name, count in images.items())
        figures = dict(errors=errors, images=images, table=self.table(ranked))
        baseline = self.baseline(default)
        if best is default:
            words = f"keep the default, {errors[DEFAULT]:.2f} mIoU off Table 2's steps on average"
            return Finding(OK, f"{words} ({share}); {baseline}", figures)
        low, high = self.gain(default, best)
        sure = "more than chance" if low > 0 else "which may be chance"
        words = (
            f"{best.name} ({', '.join(best.options)}): {errors[best.name]:.2f} mIoU off Table 2's"
            f" steps on average, the default {errors[DEFAULT]:.2f}; 95% interval of the gain"
            f" {low:.2f} to {high:.2f}, {sure} ({share}); {baseline}"
        )
        figures |= dict(proposal=best.options, gain=[low, high])
        return Finding(OK, words, figures)

    def baseline(self, default: Reading) -> str:
        """The first rung beside Table 2's, which no reading touches."""
        own = self.figures(default)
        shown = [f"{own[name][0]:.1f} for {self.targets[name][0]:.1f} on {name}" for name in own]
        return f"the baseline has {', '.join(shown)}"

    def gain(self, default: Reading, best: Reading, rounds: int = 200) -> tuple[float, float]:
        """The 95% interval of how much nearer one reading is, by drawing images with
        replacement.
        """
        from sfp.verification.datasets import miou

        rng, gains = np.random.default_rng(0), []
        names = {dataset: self.common(dataset, self.readings) for dataset in self.targets}
        stacks = {
            (rung, dataset): self.counts(rung, dataset, own)
            for dataset, own in names.items()
            for rung in {*default.rungs, *best.rungs}
        }
        for _ in range(rounds):
            drawn = {
                dataset: rng.multinomial(len(own), np.full(len(own), 1 / len(own)))
                for dataset, own in names.items()
            }
            errors = []
            for reading in (default, best):
                off = []
                for dataset, target in self.targets.items():
                    own = [
                        miou(np.tensordot(drawn[dataset], stacks[rung, dataset], 1))
                        for rung in reading.rungs
                    ]
                    off += [abs((own[i] - own[0]) - (target[i] - target[0])) for i in (1, 2, 3)]
                errors.append(sum(off) / len(off))
            gains.append(errors[0] - errors[1])
        low, high = np.percentile(gains, [2.5, 97.5])
        return float(low), float(high)

    def table(self, ranked: list[Reading]) -> dict[str, list]:
        """The readings by their distance, for the page."""
        head = ["reading", "options", "#off"]
        for dataset in self.targets:
            head += [f"#{dataset} {word}" for word in ("ClearCLIP", "+SOM", "+SAE", "+HAI")]
        target = [f"{value:.1f}" for own in self.targets.values() for value in own]
        body = [["Table 2", "", "", *target]]
        for reading in ranked:
            own = [f"{value:.1f}" for values in self.figures(reading).values() for value in values]
            options = f"`{','.join(reading.options)}`" if reading.options else ""
            body.append([reading.name, options, f"{self.error(reading):.2f}", *own])
        return dict(head=head, body=body)
