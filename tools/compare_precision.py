"""Compare the labels that methods give in half precision with those in float32, and their mIoU, on
Toyland's held-out scenes.

python tools/compare_precision.py --methods CLIP SC-CLIP SFP --scenes 120 --out precision.json
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path

import torch

from sfp.errors import SFPError, run_command
from sfp.files import whole_file
from sfp.options import HelpFormatter
from sfp.progress import progress


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=HelpFormatter
    )
    parser.add_argument("--methods", nargs="+", help="all by default; proxies are colours")
    parser.add_argument("--precisions", nargs="+", default=["bf16", "fp16"])
    parser.add_argument("--scenes", type=int, default=120)
    parser.add_argument("--no-purify", action="store_true", help="switch purification off")
    parser.add_argument("--device", help="cuda or cpu; CUDA where there is one by default")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return run_command(compare, parser.parse_args())


def compare(args: argparse.Namespace) -> None:
    """Print and write, for each method and precision, the share of equal pixels in percent and the
    mIoU.

    Raises:
        SFPError: unknown method or precision, or no scene.
    """
    from sfp import Segmenter, list_methods, load_clip
    from sfp.datasets import toyland
    from sfp.evaluation.counts import Figures, count_image, sum_counts
    from sfp.page.backend import TOYLAND_OPTIONS

    if args.scenes < 1:
        raise SFPError(f"--scenes is {args.scenes}; give at least 1.")
    scenes = [
        toyland.make_scene("val", index)
        for index in progress(range(args.scenes), desc="drawing scenes", leave=False)
    ]
    truth = [torch.from_numpy(scene.labels).long() for scene in scenes]
    names = list(toyland.CLASSES)
    warnings.filterwarnings("ignore", message=".*far slower than fp32.*")
    clips = {
        precision: load_clip("Toyland", device=args.device, precision=precision)
        for precision in ("fp32", *args.precisions)
    }
    figures: dict[str, dict[str, dict[str, float]]] = {}
    print(f"{'method':<12} {'precision':<9} {'equal to fp32':>13} {'mIoU':>7}")
    for method in args.methods or list_methods():
        options = dict(TOYLAND_OPTIONS.get(method, {}))
        if args.no_purify:
            options["purify"] = False
        labels, figures[method] = {}, {}
        for precision, clip in clips.items():
            found = Segmenter(method, clip, **options).many(
                (scene.image for scene in scenes), names, keep_scores=False
            )
            labels[precision] = [torch.from_numpy(result.labels) for result in found]
            counts = [
                count_image(own, true, len(names))
                for own, true in zip(labels[precision], truth, strict=True)
            ]
            equal = [
                float((own == exact).float().mean())
                for own, exact in zip(labels[precision], labels["fp32"], strict=True)
            ]
            row = {
                "equal": 100 * sum(equal) / len(equal),
                "mIoU": Figures.of(sum_counts(counts, len(names))).mIoU,
            }
            figures[method][precision] = row
            print(
                f"{method:<12} {precision:<9} {row['equal']:>13.2f} {row['mIoU']:>7.2f}", flush=True
            )
    if args.out:
        with whole_file(args.out) as file:
            file.write_text(
                json.dumps(
                    {"scenes": args.scenes, "purify": not args.no_purify, "figures": figures},
                    indent=1,
                )
                + "\n"
            )


if __name__ == "__main__":
    sys.exit(main())
