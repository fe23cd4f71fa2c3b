"""Measure every method and detector on Toyland and write docs/methods.md and the README's table.

    python tools/make_method_tables.py            # measures what docs/toyland.json lacks, then writes the tables
    python tools/make_method_tables.py --again    # measures everything again
    python tools/make_method_tables.py --check    # measures nothing, fails where the tables are not what this would write

Each row is one run of tools/test.py; its options stand beside it in docs/toyland.json.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

from sfp.errors import SFPError, run_command
from sfp.files import whole_file
from sfp.markdown import markdown_table
from sfp.methods import METHODS, list_methods
from sfp.outliers import DETECTORS, list_detectors

ROOT = Path(__file__).parent.parent
FIGURES, PAGE, README = ROOT / "docs/toyland.json", ROOT / "docs/methods.md", ROOT / "README.md"
START, END = "<!-- made by tools/make_method_tables.py -->", "<!-- end -->"
LAYERS = "model.purify_layers=[" + ",".join(map(str, range(1, 12))) + "]"
SOM = ["model.purify=True", "model.pm=SOM", LAYERS]
PURIFIED = ("SFP", "SC-CLIP", "ClearCLIP")  # the rows of the detector table
VARIANTS = {
    "MaskCLIP": [["model.variant=bare"]],
    "CLIPSurgery": [["model.feature_surgery=True"]],
    "CLIPtrase": [["model.cluster_vote=majority", "model.window=0"], ["model.cluster_vote=mean"], ["model.cluster_vote=majority"]],
    "CLIPSeg": [["model.deep_layers=-1"], ["model.relation=two_hop"], ["model.attention_layer=7"]],
    "SC-CLIP": [["model.purify=False"]],
    "SFP-release": [["model.purify=False"], ["model.pm=L2"], ["model.pm=LOF"]],
    "SFP": [
        ["model.purify=False"],
        ["model.hai=False"],
        ["model.hai_iterations=3"],
        ["model.sae_residual=none"],
        ["model.sae_residual=none", "model.hai=False"],
        ["model.sae_residual=none", "model.hai=False", "model.purify=False"],
    ],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--again", action="store_true", help="measure everything again")
    parser.add_argument("--check", action="store_true", help="measure and write nothing; fail where the tables are not up to date")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return run_command(make, parser.parse_args())


def rows() -> list[list[str]]:
    """Options of every run."""
    found = []
    for name in list_methods():
        own = [f"model.method={name}"]
        found += [own, [*own, *SOM], *([*own, *variant] for variant in VARIANTS.get(name, []))]
    for name in PURIFIED:
        found += [[f"model.method={name}", "model.purify=False"]]
        found += [[f"model.method={name}", "model.purify=True", f"model.pm={pm}"] for pm in list_detectors()]
    return found


def measure(options: list[str]) -> dict:
    """One run of tools/test.py on Toyland.

    Raises:
        SFPError: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "tools/test.py", "configs/cfg_toyland.py", "--work-dir", folder, "--cfg-options", *options]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
        if done.returncode:
            raise SFPError(f"{' '.join(command)} failed: {done.stderr.strip().splitlines()[-1]}")
        result = json.loads((Path(folder) / "results.json").read_text())
    return {key: result[key] for key in ("mIoU", "aAcc", "images", "precision", "device", "weights_sha256")}


def make(args: argparse.Namespace) -> None:
    """Measure, and write or check the tables.

    Raises:
        SFPError: a run failed, a figure is missing, or a table is not up to date.
    """
    figures = json.loads(FIGURES.read_text()) if FIGURES.is_file() and not args.again else {}
    missing = [options for options in rows() if " ".join(options) not in figures]
    if args.check and missing:
        raise SFPError(f"docs/toyland.json lacks {' '.join(missing[0])}; run tools/make_method_tables.py.")
    for options in tqdm(missing, unit="run"):
        figures[" ".join(options)] = measure(options)
        with whole_file(FIGURES) as partial:
            partial.write_text(json.dumps(figures, indent=1) + "\n")
    before, rest = README.read_text().split(START)
    after = rest.split(END)[1]
    texts = {PAGE: page(figures), README: f"{before}{START}\n{short_table(figures)}{END}{after}"}
    for path, text in texts.items():
        if args.check and (not path.is_file() or path.read_text() != text):
            raise SFPError(f"{path.relative_to(ROOT)} is not what tools/make_method_tables.py writes; run it.")
        if not args.check:
            with whole_file(path) as partial:
                partial.write_text(text)


def file_of(cls: type) -> Path:
    """A class's file, from the repository's root."""
    return Path(inspect.getsourcefile(cls)).relative_to(ROOT)


def figure(figures: dict, *options: str) -> str:
    return f"{figures[' '.join(options)]['mIoU']:.1f}"


def short_table(figures: dict) -> str:
    """The README's: each method as published, and with SOM after every layer."""
    body = []
    for name in list_methods():
        cls = METHODS.get(name)
        own = f"model.method={name}"
        body.append([f"[{name}]({file_of(cls)})", cls.card.paper, figure(figures, own), figure(figures, own, *SOM)])
    return markdown_table(["method", "paper", "#mIoU as published", "#with SOM after layers 1..11"], body)


def page(figures: dict) -> str:
    """docs/methods.md."""
    methods, variants, detectors = [], [], []
    for name in list_methods():
        cls = METHODS.get(name)
        card, own, path = cls.card, f"model.method={name}", file_of(cls)
        lines = str(len((ROOT / path).read_text().splitlines()))
        kept = ["yes" if value else "no" for value in (card.residual, card.ffn)]
        methods.append(
            [name, card.paper, f"[{path.name}](../{path})", lines, card.attention, card.values, card.layers, *kept, figure(figures, own)]
        )
        for variant in VARIANTS.get(name, []):
            shown = " ".join(option.removeprefix("model.") for option in variant)
            variants.append([name, f"`{shown}`", figure(figures, own, *variant)])
    for pm in [None, *list_detectors()]:
        options = ["model.purify=False"] if pm is None else ["model.purify=True", f"model.pm={pm}"]
        where = "" if pm is None else f"[{file_of(DETECTORS.get(pm)).name}](../{file_of(DETECTORS.get(pm))})"
        detectors.append([pm or "off", where, *(figure(figures, f"model.method={name}", *options) for name in PURIFIED)])
    sample = next(iter(figures.values()))
    return f"""# Methods and detectors

Written by `tools/make_method_tables.py` from the registries and from `docs/toyland.json`. mIoU on Toyland: {sample["images"]}
held-out scenes, the built-in CLIP, {sample["precision"]} on the {sample["device"]}, windows 224/112, short side 336, 80 prompts; each
figure is one run of

```text
sh scripts/test.sh configs/cfg_toyland.py --cfg-options OPTIONS
```

Toyland ranks methods on a toy; it says nothing about real weights.

## Methods

What each changes in CLIP: the last attention's weights, its values, the layers that it touches, and whether the last block keeps its
residual and its FFN (for CLIP-Surgery and GEM: the second path). Options are `model.method=NAME`.

{markdown_table(["method", "paper", "file", "#lines", "attention", "values", "layers", "residual", "FFN", "#mIoU"], methods)}
ProxyCLIP's outside eye is `proxy=colour` here, the mean colours of 8x8 pixels: DINO can't be downloaded where this was measured.
CLIPSeg's layer on Toyland was chosen by `tools/probe_layers.py` on other scenes.

## Variants

{markdown_table(["method", "options", "#mIoU"], variants)}
## Detectors

`model.purify=True model.pm=NAME` with each detector's defaults, at the method's own layers: 1..11 for SFP and ClearCLIP, 11 for SC-CLIP.

{markdown_table(["detector", "file", *(f"#{name}" for name in PURIFIED)], detectors)}"""


if __name__ == "__main__":
    sys.exit(main())
