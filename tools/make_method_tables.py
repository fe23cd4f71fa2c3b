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
    "SFP-release": [
        ["model.purify=False"],
        ["model.pm=L2"],
        ["model.pm=LOF"],
        ["model.release=2025-12"],
        ["model.release=2025-12", "model.purify=False"],
    ],
    "SFP": [
        ["model.purify=False"],
        ["model.hai=False"],
        ["model.hai=False", "model.purify=False"],
        ["model.hai_iterations=3"],
        ["model.sae_cls_key=True"],
        ["model.sae_residual=none"],
        ["model.sae_residual=ffn"],
        ["model.sae_residual=full"],
        ["model.sae_residual=full", "model.sae_cls_key=True"],
    ],
}
ABOUT_SFP = """\
## SFP: its text and its public code

**`SFP` is our reading of the paper.** The published method, SOM after every layer, SAE and HAI, is
in no public code that we know, so `SFP` is tested against a slow reading of the equations, not
against its authors' numbers. Where the text is open each answer is an option, and `sfp-questions`
of [ablations.md](ablations.md) changes one at a time. Two answers about SAE come from the code:
since 21 November 2026 the last block is `W_o A V + b_o + 0.3 c`, with `c` the class token of
X^{L-1}, and attention among patches alone. The evidence:

- All five public states of the authors' code (October, November and December 2025, February and
  March 2026) have no residual of patch tokens and no FFN in the last block, real value and output
  projections, 0.3 times the class token added, and no class token among the keys.
- The official figure below was made so.
- Table 2 of the paper adds SAE to ClearCLIP, which has neither residual nor FFN.

Against it stands Eq. 7 as printed, `F_SOM + FFN(A F_SOM)`: `sae_residual=ffn`. Until that day the
default was a full block with the class token among the keys: `sae_residual=full sae_cls_key=True`.
Further readings are `none` and `attention`.

**`SFP-release` is the code**, in two of its states, both equal to the authors' own outputs on
made-up weights to 1e-5 in the cosines. Neither has HAI or repairs tokens after more than one block.
What is known of each state:

- October 2025: its last block is as above.
- November 2025: SOM, L2 or LOF after block L-1; the mean of q-q and k-k attention; a second stream
  of summed middle layers through the same attention; 15 prompts.
- December 2025, commit `844b981`: the same, layers 4 to 11 summed. It made the only official figure
  on a dataset of the paper: 61.4 mIoU on VOC21 with ViT-B/16 (the paper prints 63.9). Here it is
  `release=2025-12`.
- February 2026: similarities of middle layers, and 80 prompts. No figure was found.
- March 2026, commit `2804f5b`: the second stream mixed by similarity alone. No figure on a dataset
  of the paper was found. Here it is `release=2026-03`, the default.

In November and December 2025 a comment in the code says that SOM is applied once for simplicity.

The log of the 61.4 (7 December 2025) has SOM, `res_cls` 0.3, short side 336, logit scale 50,
`prob_thd` 0.15 and `area_thd` 0.1, as `configs/cfg_voc21.py` has. Its text came from 15 prompts,
mostly "a photo of" and "there is" sentences, and we do not have their list: `release=2025-12` takes
the 80 prompts like all methods here, so its VOC21 figure need not be 61.4. Who has the list gives
it as `model.prompts`. A later tree of the repository has logs of May 2026 on ACDC, BDD, Mapillary
and RoadWork, which are not among the datasets here; they do not say which state made them. No
figure with real weights has been measured here.
"""


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
{ABOUT_SFP}
## Detectors

`model.purify=True model.pm=NAME` with each detector's defaults, at the method's own layers: 1..11 for SFP and ClearCLIP, 11 for SC-CLIP.

{markdown_table(["detector", "file", *(f"#{name}" for name in PURIFIED)], detectors)}"""


if __name__ == "__main__":
    sys.exit(main())
