"""How often the host waits for a GPU in one picture, for each method, detector and refiner.

It needs no GPU: a pretended one (``tests/pretended_device.py``) counts what
``torch.cuda.set_sync_debug_mode`` reports on a real one. Toyland, its own second models.

    python tools/dev/host_waits.py > waits.md
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from pretended_device import PretendedCUDA

import sfp
from sfp.datasets import toyland
from sfp.methods import METHODS
from sfp.outliers import list_detectors
from sfp.page.backend import TOYLAND_OPTIONS

NAMES = ["sky", "sea", "sand", "boat"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "fp16", "bf16"])
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    cases = [(method, method, {}) for method in METHODS.names()]
    cases += [(f"SFP with {pm}", "SFP", dict(pm=pm)) for pm in list_detectors() if pm != "SOM"]
    cases += [(f"SFP with {name}", "SFP", dict(refine=[name])) for name in ("PAMR", "TLP")]
    cases += [("SFP with probabilities", "SFP", {})]
    print("| | waits | where |\n| --- | ---: | --- |")
    with PretendedCUDA() as cuda:
        clip = sfp.load_clip("Toyland", device="cuda", precision=args.precision)
        for title, method, options in cases:
            found = waits(cuda, clip, method, options, title.endswith("probabilities"))
            print(f"| {title} | {sum(found.values())} | {places(found)} |", flush=True)
    return 0


def waits(cuda: PretendedCUDA, clip, method: str, options: dict, kept: bool) -> Counter[str]:
    """How often each file of sfp waits in a picture of six windows, once what is kept is made."""
    options = {**TOYLAND_OPTIONS.get(method, {}), **options}
    window = 0 if METHODS.get(method).whole_images else 64
    own = sfp.Segmenter(
        method, clip, short_side=96, window=window, stride=32, prompts=prompts(method), **options
    )
    image = toyland.make_scene("val", 10).image[:192, :256]
    own(image, NAMES, keep_scores=kept)
    cuda.waits.clear()
    own(image, NAMES, keep_scores=kept)
    return Counter(wait.where.partition(":")[0] for wait in cuda.waits)


def prompts(method: str) -> str:
    return "imagenet80" if method == "FLOSS" else "photo"


def places(found: Counter[str]) -> str:
    return ", ".join(f"{place} {count}" for place, count in found.most_common())


if __name__ == "__main__":
    sys.exit(main())
