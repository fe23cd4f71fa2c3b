"""Plant faults that a set-up can have, one at a time, and show that ``sfp verify`` names each.

python tools/dev/plant_faults.py
python tools/dev/plant_faults.py --faults activation corners --out table.md

Each is planted by replacing a function of this package while the command runs on Toyland.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from tqdm import tqdm

from sfp.errors import run_command, unknown_choice
from sfp.evaluation.markdown import markdown_table
from sfp.files import whole_file
from sfp.options import HelpFormatter


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        title: what is wrong.
        target: the function that is replaced, ``module:name``.
        replace: makes its replacement of the original.
        steps: those whose checks are meant to see it, for a quick run.
        named: words of the verdict that names it.
    """

    title: str
    target: str
    replace: Callable[[Callable], Callable]
    steps: str
    named: str


def _gelu(_: Callable) -> Callable:
    return lambda module: (1.0, "gelu")


def _loaded_as_gelu(_: Callable) -> Callable:
    return lambda *_: False


def _swapped(original: Callable) -> Callable:
    return lambda *given: tuple(reversed(original(*given)))


def _normalised_by_each_other(_: Callable) -> Callable:
    def normalise(clip, images):
        mean, std = (
            np.array(values, np.float32).reshape(3, 1, 1) * 255
            for values in (clip.pixel_std, clip.pixel_mean)
        )
        return (images.float() - mean) / std

    return normalise


def _rolled(original: Callable) -> Callable:
    return lambda bank, queries: original(bank, queries).roll(1, 0)


def _labels_plus(shift: int) -> Callable[[Callable], Callable]:
    def replace(original: Callable) -> Callable:
        def transform(self, results: dict) -> dict:
            results = original(self, results)
            labels = results["gt_seg_map"]
            kept = (labels != 255) & (labels + shift >= 0)
            results["gt_seg_map"] = np.where(kept, labels + shift, 255)
            return results

        return transform

    return replace


def _transposed(_: Callable) -> Callable:
    def self_attend(u, v, *, bias=None, scale=None):
        logits = (u.shape[-1] ** -0.5 if scale is None else scale) * u @ u.mT
        return (logits if bias is None else logits + bias).softmax(-1).mT @ v

    return self_attend


def _corners(original: Callable) -> Callable:
    def interpolate(*given: Any, **options: Any):
        if options.get("mode") in ("linear", "bilinear", "bicubic"):
            options["align_corners"] = True
        return original(*given, **options)

    return interpolate


FAULTS = {
    "activation": Fault(
        "GELU for QuickGELU in the trunk", "sfp.clip.block:activation_of", _gelu, "d",
        "the activation, ours is plain GELU and open_clip's QuickGELU",
    ),
    "loading": Fault(
        "GELU for QuickGELU when the weights are loaded", "sfp.clip.loading:_activation",
        _loaded_as_gelu, "b", "the activation is plain GELU, not QuickGELU",
    ),
    "pixels": Fault(
        "mean and deviation swapped when the weights are loaded",
        "sfp.clip.loading:_normalisation", _swapped, "b", "mean and deviation are swapped",
    ),
    "normalise": Fault(
        "mean and deviation swapped where pixels are normalised",
        "sfp.clip.clip:FrozenCLIP.normalise", _normalised_by_each_other, "b",
        "mean and deviation are swapped",
    ),
    "names": Fault(
        "names shifted by one", "sfp.clip.text_bank:TextBank.encode", _rolled, "b",
        "names shifted by one",
    ),
    "labels": Fault(
        "labels shifted by one, downwards", "sfp.datasets.labels:LoadLabels.transform",
        _labels_plus(-1), "f", "labels shifted by one",
    ),
    "labels-up": Fault(
        "labels shifted by one, upwards", "sfp.datasets.labels:LoadLabels.transform",
        _labels_plus(1), "f", "Labels shifted by one",
    ),
    "attention": Fault(
        "ClearCLIP's attention transposed", "sfp.methods.clearclip:self_attend", _transposed, "d",
        "they are those of a transposed attention",
    ),
    "attention-sfp": Fault(
        "SFP's attention transposed", "sfp.methods.sfp:self_attend", _transposed, "d",
        "they are those of a transposed attention",
    ),
    "corners": Fault(
        "resizes with aligned corners", "torch.nn.functional:interpolate", _corners, "d",
        "the corners are aligned (align_corners=True)",
    ),
}  # fmt: skip


@contextmanager
def planted(fault: Fault) -> Iterator[None]:
    """A fault while the block lasts."""
    module, _, name = fault.target.partition(":")
    owner: Any = __import__(module, fromlist=["_"])
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    with patch.object(owner, last, fault.replace(getattr(owner, last))):
        yield


def verdicts(
    fault: Fault | None,
    steps: Sequence[str],
    out: Path,
    methods: Sequence[str] = ("ClearCLIP", "SFP"),
) -> list[dict[str, Any]]:
    """The parts that fail under a fault, in their order."""
    from sfp.__main__ import main as sfp_main

    given = ["--model", "Toyland", "--methods", *methods, "--datasets", "toyland"]
    given += ["--device", "cpu", "--fresh", "--out", str(out), "--steps", *steps]
    plant = planted(fault) if fault else contextlib.nullcontext()
    with plant, contextlib.redirect_stdout(io.StringIO()):
        sfp_main(["verify", *given])
    parts = json.loads((out / "verify.json").read_text())["parts"]
    return [part for part in parts if part["finding"]["verdict"] == "FAILED"]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=HelpFormatter
    )
    parser.add_argument("--faults", nargs="+", default=list(FAULTS), metavar="NAME")
    parser.add_argument("--steps", nargs="+", default=list("bcdf"), metavar="a")
    parser.add_argument("--out", type=Path, help="write the table to this file, too")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return run_command(show, parser.parse_args())


def show(args: argparse.Namespace) -> None:
    """Print the table of faults and verdicts.

    Raises:
        SFPError: no such fault.
    """
    for name in args.faults:
        if name not in FAULTS:
            raise unknown_choice("fault", name, FAULTS)
    body = []
    with tempfile.TemporaryDirectory() as folder:
        rows = [("none", None), *((name, FAULTS[name]) for name in args.faults)]
        for name, fault in tqdm(rows, unit="fault"):
            failed = verdicts(fault, args.steps, Path(folder) / name)
            telling = [part for part in failed if fault and fault.named in part["finding"]["words"]]
            first = next(iter(telling or failed), None)
            shown = "" if first is None else f"{first['name']}: {first['finding']['words']}"
            body.append([fault.title if fault else "none", shown, str(len(failed))])
    table = markdown_table(["planted", "what names it", "#parts that fail"], body)
    print(table)
    if args.out:
        with whole_file(args.out) as partial:
            partial.write_text(table)


if __name__ == "__main__":
    sys.exit(main())
