"""Measure every method and detector on Toyland and write docs/methods.md, the methods' tables of
README.md and docs/toyland.md, and into docs/peers.md the published numbers of methods that are not
run here.

    python tools/dev/make_method_tables.py            # measures what docs/toyland.json lacks, then
    writes the tables
    python tools/dev/make_method_tables.py --again    # measures everything again
    python tools/dev/make_method_tables.py --check    # measures nothing, fails where the tables are
    not what this would write

Each row is a cell of the grid (tools/benchmark.py), known in docs/toyland.json by backbone and
method string. Cells that are finished in --out are read there: so benchmark.py may measure some of
them in further processes.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from dataclasses import fields
from pathlib import Path

from tqdm import tqdm

from sfp.clip.built_in import BUILT_IN
from sfp.errors import SFPError, run_command
from sfp.evaluation.markdown import markdown_table
from sfp.evaluation.published import find_published
from sfp.evaluation.tables import COLUMNS, peers_table
from sfp.files import whole_file
from sfp.methods import METHODS, list_methods
from sfp.outliers import DETECTORS, list_detectors

ROOT = Path(__file__).parent.parent.parent
FIGURES, PAGE, README = ROOT / "docs/toyland.json", ROOT / "docs/methods.md", ROOT / "README.md"
TOYLAND, PEERS = ROOT / "docs/toyland.md", ROOT / "docs/peers.md"
START, END = "<!-- made by tools/dev/make_method_tables.py -->", "<!-- end -->"
SOM = "purify=True,pm=SOM,purify_layers=[" + ",".join(map(str, range(1, 12))) + "]"
PURIFIED = ("SFP", "SC-CLIP", "ClearCLIP")  # the columns of the detector table
SECOND = ("proxy", "dino", "dinoiser", "scorer")  # options that name a second model
FEW = 10  # scenes of the detector table: IsolationForest takes seconds for each
REGISTERS = "purify=False,registers=1"
VARIANTS = {
    "RF-CLIP": ["image_weight=0.0,patch_weight=0.0"],
    "PEARL": ["refine=[]"],
    "ResCLIP": ["sfr=False"],
    "FSA": ["base=NACLIP"],
    "FreeCP": ["base=SCLIP", "base=MaskCLIP"],
    "Trident": ["sam=None"],
    "CorrCLIP": ["correct=False"],
    "CASS": ["strategy=sequential"],
    "SCLIP": [REGISTERS],
    "ClearCLIP": [REGISTERS],
    "NACLIP": [REGISTERS],
    "MaskCLIP": ["variant=bare"],
    "CLIPSurgery": ["feature_surgery=True"],
    "CLIPtrase": ["cluster_vote=majority,window=0", "cluster_vote=mean", "cluster_vote=majority"],
    "CLIPSeg": ["deep_layers=-1", "relation=two_hop", "attention_layer=7"],
    "SC-CLIP": ["purify=False"],
    "SFP-release": [
        "purify=False",
        "pm=L2",
        "pm=LOF",
        "release=2025-12",
        "release=2025-12,purify=False",
    ],
    "SFP": [
        "purify=False",
        "hai=False",
        "hai=False,purify=False",
        "refine=[TLP]",
        REGISTERS,
        "hai_iterations=3",
        "sae_cls_key=True",
        "sae_residual=none",
        "sae_residual=ffn",
        "sae_residual=full",
        "sae_residual=full,sae_cls_key=True",
    ],
}
ABOUT_SFP = """\
## SFP: its text and its public code

**`SFP` is our reading of the paper.** The published method (SOM after every layer, SAE and HAI) is
in no public code that we know of, so `SFP` is tested against a slow reading of the equations, not
against its authors' numbers. Where the text is open, each answer is an option; `sfp-questions` of
[ablations.md](ablations.md) changes them one at a time. Two answers about SAE come from the code:
since 21 November 2026 the last block is `W_o A V + b_o + 0.3 c`, with `c` the class token of
X^{L-1}, and patches attend to patches alone. The evidence:

- All five public states of the authors' code (October, November and December 2025, February and
  March 2026) have no residual of patch tokens and no FFN in the last block, real value and output
  projections, 0.3 times the class token added, and no class token among the keys.
- The official figure below was made that way.
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

A comment in the code of November and December 2025 says that SOM is applied once for simplicity.

The log of the 61.4 (7 December 2025) has SOM, `res_cls` 0.3, short side 336, logit scale 50,
`prob_thd` 0.15 and `area_thd` 0.1, as `configs/cfg_voc21.py` has. Its text came from 15 prompts,
mostly "a photo of" and "there is" sentences. We do not have their list: `release=2025-12` takes the
80 prompts that all methods take here, so its VOC21 figure may differ from 61.4. If you have the
list, give it as `model.prompts`. A later tree of the repository has logs of May 2026 on ACDC, BDD,
Mapillary and RoadWork, which are not among the datasets here; they do not say which state made
them. No figure with real weights has been measured here.
"""
VERIFIED = """\
## What was compared with the authors' code

With made-up weights, each method's outputs were compared with those of the authors' public code,
whose numbers lie in [tests/goldens](../tests/goldens); the sources are named there.

| compared | equal to |
| --- | --- |
| CLIP, MaskCLIP (`variant=bare`), CLIP-Surgery, GEM, SCLIP, ClearCLIP, NACLIP, CLIPtrase (with \
its clusters and voted labels), SC-CLIP, SFP-release (December 2025 and March 2026), ProxyCLIP, \
RF-CLIP, ResCLIP, PEARL, DIH-CLIP, FSA, FreeCP | 1e-5 in the cosines |
| LaVG, Trident, CASS, LPOSS, CorrCLIP, CLIP-DINOiser, with made-up second features and masks | \
1e-5 in the cosines |
| FLOSS's fusion | 5e-5 |
| CaR's maps | 1e-4 |

Also compared: LPOSS+'s pixels, Trident's refinement by SAM, the sliding windows of SC-CLIP, SFP,
RF-CLIP and PEARL, the refiners PAMR and TLP, and test-time registers. SFP and CLIPSeg as published
have no public code: they were compared with slow, plain readings of the papers' equations.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--again", action="store_true", help="measure everything again")
    parser.add_argument(
        "--check",
        action="store_true",
        help="measure and write nothing; fail where the tables are not up to date",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "work_dirs/method_tables",
        help="folder for the grid's results",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return run_command(make, parser.parse_args())


def with_options(name: str, options: str) -> str:
    """The grid's method string."""
    return f"{name}:{options}" if options else name


def published(name: str) -> str:
    """The method string of a method as published."""
    return name if METHODS.get(name).published.get("purify") else f"{name}:purify=False"


def measured(figures: dict) -> tuple[list[str], list[str]]:
    """The methods and detectors that have figures: a new one has none until this is run."""
    methods = [m for m in list_methods() if key_of("Toyland", published(m), None) in figures]
    spec = f"{PURIFIED[0]}:purify=True,pm="
    detectors = [d for d in list_detectors() if key_of("Toyland", spec + d, FEW) in figures]
    return methods, detectors


def rows() -> list[tuple[str, str, int | None]]:
    """Backbone, method string and number of scenes (all if None) of every figure, each once."""
    found = []
    for name in list_methods():
        for backbone in BUILT_IN:
            specs = (published(name), f"{name}:purify=False", f"{name}:{SOM}")
            found += [(backbone, spec, None) for spec in specs]
        found += [
            ("Toyland", with_options(name, variant), None) for variant in VARIANTS.get(name, [])
        ]
    for name in PURIFIED:
        specs = ("purify=False", *(f"purify=True,pm={pm}" for pm in list_detectors()))
        found += [("Toyland", f"{name}:{options}", FEW) for options in specs]
    return list(dict.fromkeys(found))


def key_of(backbone: str, spec: str, scenes: int | None) -> str:
    """What docs/toyland.json knows a figure by."""
    return f"{backbone} {spec}" + (f" on {scenes} scenes" if scenes else "")


def measure(backbone: str, spec: str, scenes: int | None, out: Path) -> dict:
    """One cell of the grid, or what a finished one says.

    Raises:
        SFPError: it failed.
    """
    from sfp.evaluation.grid import Cell, plan, run_group

    options = (f"test_dataloader.dataset.scenes={scenes}",) if scenes else ()
    cell = Cell(spec, backbone, "toyland", options, str(out / (str(scenes) if scenes else "all")))
    groups, _, failed = plan([cell])
    for reason in failed.values():
        raise SFPError(reason)
    for group in groups:
        run_group(group, workers=0)
    result = json.loads((cell.folder / "results.json").read_text())
    return {
        key: result[key]
        for key in ("mIoU", "aAcc", "images", "precision", "device", "weights_sha256")
    }


def make(args: argparse.Namespace) -> None:
    """Measure, and write or check the tables.

    Raises:
        SFPError: a run failed, a figure is missing, or a table is not up to date.
    """
    known = json.loads(FIGURES.read_text()) if FIGURES.is_file() and not args.again else {}
    wanted = {key_of(*row): row for row in rows()}
    figures = {key: known[key] for key in wanted if key in known}
    missing = [] if args.check else [key for key in wanted if key not in figures]
    for key in tqdm(missing, unit="row"):
        figures[key] = measure(*wanted[key], args.out)
        with whole_file(FIGURES) as partial:
            partial.write_text(
                json.dumps({key: figures[key] for key in wanted if key in figures}, indent=1) + "\n"
            )
    texts = {PAGE: page(figures)}
    parts = (
        (README, short_table(figures)),
        (TOYLAND, toyland_table(figures)),
        (PEERS, peers_table()),
    )
    for path, table in parts:
        before, rest = path.read_text().split(START)
        texts[path] = f"{before}{START}\n{table}{END}{rest.split(END)[1]}"
    for path, text in texts.items():
        if args.check and (not path.is_file() or path.read_text() != text):
            raise SFPError(
                f"{path.relative_to(ROOT)} is not what tools/dev/make_method_tables.py writes; "
                f"run it."
            )
        if not args.check:
            with whole_file(path) as partial:
                partial.write_text(text)


def file_of(cls: type) -> Path:
    """A class's file, from the repository's root."""
    return Path(inspect.getsourcefile(cls)).relative_to(ROOT)


def figure(figures: dict, backbone: str, spec: str, scenes: int | None = None) -> str:
    return f"{figures[key_of(backbone, spec, scenes)]['mIoU']:.1f}"


def needs(name: str) -> str:
    """What a method needs besides CLIP as published, read off its options."""
    options = {field.name: field.default for field in fields(METHODS.get(name))}
    found = ["a second model"] if any(option in options for option in SECOND) else []
    found += ["region masks"] if "masks" in options else []
    if "base" in options and not found:
        found = [needs(options["base"]) or f"a method below it ({options['base']})"]
    return ", ".join(found)


def printed(name: str, dataset: str) -> tuple[float, str] | None:
    """mIoU that a paper prints with ViT-B/16, and where.

    SFP's are not its released code's, whose only figure ABOUT_SFP has.
    """
    return None if name == "SFP-release" else find_published(name, "ViT-B-16", dataset)


def short_table(figures: dict) -> str:
    """The README's: what each method needs, two published figures, and one on Toyland."""
    body = []
    for name in measured(figures)[0]:
        cls = METHODS.get(name)
        found = (printed(name, dataset) for dataset in ("voc21", "ade20k"))
        cells = [f"{each[0]:.1f}" if each else "" for each in found]
        cells.append(figure(figures, "Toyland", published(name)))
        body.append([f"[{name}]({file_of(cls)})", cls.changes.paper, needs(name), *cells])
    heads = ["#published: VOC21", "#ADE20K", "#measured: Toyland"]
    return markdown_table(["method", "paper", "needs besides CLIP", *heads], body)


def toyland_table(figures: dict) -> str:
    """docs/toyland.md's: each method as published and with SOM after every layer, on both
    models.
    """
    body = []
    for name in measured(figures)[0]:
        cells = (
            figure(figures, model, spec)
            for model in BUILT_IN
            for spec in (published(name), f"{name}:{SOM}")
        )
        body.append([f"[{name}](../{file_of(METHODS.get(name))})", *cells])
    kinds = ("as published", "with SOM in all layers")
    return markdown_table(
        ["method", *(f"#{model}: {kind}" for model in BUILT_IN for kind in kinds)], body
    )


def published_table(figures: dict) -> str:
    """The figures that the papers print of the methods here, and where each row stands."""
    keys = {key: head for key, head in COLUMNS.values() if key != "toyland"}
    body = []
    for name in measured(figures)[0]:
        found = [printed(name, key) for key in keys]
        where = ", ".join(dict.fromkeys(each[1] for each in found if each))
        if where:
            numbers = (f"{each[0]:.1f}" if each else "" for each in found)
            body.append([name, where, *numbers])
    return markdown_table(["method", "printed in", *(f"#{head}" for head in keys.values())], body)


def page(figures: dict) -> str:
    """docs/methods.md."""
    methods, variants, detectors = [], [], []
    for name in measured(figures)[0]:
        cls = METHODS.get(name)
        changes, path = cls.changes, file_of(cls)
        kept = ["yes" if value else "no" for value in (changes.residual, changes.ffn)]
        methods.append(
            [
                name,
                changes.paper,
                f"[{path.name}](../{path})",
                changes.attention,
                changes.values,
                changes.layers,
                *kept,
                figure(figures, "Toyland", published(name)),
            ]
        )
        for variant in VARIANTS.get(name, []):
            variants.append(
                [name, f"`{variant}`", figure(figures, "Toyland", with_options(name, variant))]
            )
    for pm in [None, *measured(figures)[1]]:
        options = "purify=False" if pm is None else f"purify=True,pm={pm}"
        where = (
            ""
            if pm is None
            else f"[{file_of(DETECTORS.get(pm)).name}](../{file_of(DETECTORS.get(pm))})"
        )
        detectors.append(
            [
                pm or "off",
                where,
                *(figure(figures, "Toyland", f"{name}:{options}", FEW) for name in PURIFIED),
            ]
        )
    sample = next(iter(figures.values()))
    heads = ["method", "paper", "file", "attention", "values", "layers"]
    heads += ["residual", "FFN", "#mIoU"]
    return f"""# Methods and detectors

What each method changes in CLIP, the figures that papers print, the variants and detectors that
were measured, and what is known of SFP's code. [README](../README.md#which-method-should-i-use)
says which method to use.

This page is written by `tools/dev/make_method_tables.py` from the code and `docs/toyland.json`.
"mIoU" is measured on Toyland, the built-in cartoon world ([toyland.md](toyland.md)):
{sample["images"]} held-out scenes, {sample["precision"]} on the {sample["device"]}, windows of 224
with stride 112, short side 336, 80 prompts. **It compares methods on a toy and says nothing about
real weights.** Each figure can be measured again with

```text
python tools/benchmark.py --methods METHOD:OPTIONS --backbones Toyland --datasets toyland
```

## Methods

The columns say what a method changes: the weights of the last attention, the values that it mixes,
the layers that are touched (L is the last one), and whether the last block keeps its residual
connection and its FFN (for CLIP-Surgery and GEM: those of the second path). A config chooses a
method by `model.method=NAME`.

{markdown_table(heads, methods)}
The second models of ProxyCLIP, FSA, LPOSS, Trident, CASS, CorrCLIP and CLIP-DINOiser were replaced
by `colour` here, the mean colours of 8x8 pixels, and the masks of LaVG and CorrCLIP were cut by
these colours on 20x20 patches, since DINO and SAM could not be downloaded where this was measured.
These rows show that the code runs. They are no comparison: flat colours are easy for some methods
and useless for others. CaR drops no text here and has no background words. FLOSS's prompts were
ranked on 8 scenes of another split. CLIPSeg's layer was chosen by `tools/probe_layers.py` on other
scenes.

## Published figures

mIoU with OpenAI's ViT-B/16 as printed, each from the method's own paper or README where it prints
one, otherwise from another paper's table. Their settings differ, and some were read off pictures,
quoted elsewhere, or are doubtful (RF-CLIP's come from a list, CaR's use its own metric): the notes
beside each number in [paper_results.csv](../sfp/evaluation/paper_results.csv) say so. That file
also has figures with other weights, among them CorrCLIP's with MetaCLIP and LPOSS's with LAION-2B.

{published_table(figures)}
## Variants

One option or two changed, everything else as published.

{markdown_table(["method", "options", "#mIoU"], variants)}
## Detectors

A detector finds the outlier tokens that purification repairs: `purify=True,pm=NAME`, any of them
with any method. mIoU with each detector's defaults, at the method's own layers (1 to 11 for SFP and
ClearCLIP, 11 for SC-CLIP), on the first {FEW} scenes. [outliers.md](outliers.md) says which
detector finds what.

{markdown_table(["detector", "file", *(f"#{name}" for name in PURIFIED)], detectors)}
{ABOUT_SFP}
{VERIFIED}"""


if __name__ == "__main__":
    sys.exit(main())
