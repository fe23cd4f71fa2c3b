"""Find a CLIP's register neurons, for test-time registers (Jiang et al., NeurIPS 2025).

Looks at pictures of a config's dataset, without their labels, and writes the hidden units that make
outlier tokens into a file that is keyed by the weights' fingerprint; other weights' entries in it
stay. Methods take it by registers=dict(neurons=FILE); the shipped file is the default.

python tools/find_registers.py configs/cfg_toyland.py --images 20 --out neurons.json
python tools/find_registers.py configs/cfg_voc20.py --threshold 30 --highest 6 --count 10
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from sfp.errors import SFPError, run_command
from sfp.files import whole_file
from sfp.options import HelpFormatter, add_config_options
from sfp.plugin import require_mmseg
from sfp.progress import progress


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=HelpFormatter
    )
    parser.add_argument("config", help="a config file, such as configs/cfg_toyland.py")
    parser.add_argument(
        "--images", type=int, default=100, help="how many images, spread over the dataset"
    )
    parser.add_argument("--out", type=Path, default=Path("register_neurons.json"), help="the file")
    parser.add_argument(
        "--threshold",
        type=float,
        help="longer tokens are outliers; if not given the mean of the patches' lengths and three"
        " standard deviations",
    )
    parser.add_argument(
        "--layer", type=int, default=-1, help="block after which they are; -1 the last, -2 ..."
    )
    parser.add_argument(
        "--highest",
        type=int,
        help="last block to search; where outliers first appear, if not given",
    )
    parser.add_argument("--lowest", type=int, default=1, help="first block to search")
    parser.add_argument(
        "--count", type=int, help="how many neurons; as few as end the outliers, if not given"
    )
    parser.add_argument(
        "--no-filter",
        action="store_true",
        help="also neurons that are active on most tokens",
    )
    add_config_options(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return run_command(find, parser.parse_args())


def find(args: argparse.Namespace) -> None:
    """Find the neurons, print how many outliers they end, and write the file.

    Raises:
        SFPError: wrong arguments, config or data, or no outlier in any picture.
    """
    require_mmseg()
    from sfp.clip.registers import read_entries
    from sfp.evaluation.config import load_frozen, read_config
    from sfp.evaluation.dataset import build_dataset, spread_over
    from sfp.experiments.register_neurons import Rule, choose_neurons

    cfg = read_config(args.config, args.cfg_options)
    entries = read_entries(args.out) if args.out.exists() else {}
    clip = load_frozen(cfg.model)
    layers = clip.trunk.layers
    counts = (args.images, args.lowest, args.highest or 1, args.count or 1)
    if min(counts) < 1 or args.layer == 0 or not -layers <= args.layer <= layers:
        raise SFPError(
            f"--images, --lowest, --highest and --count must be at least 1, and --layer one of"
            f" {layers} blocks; give such numbers."
        )
    dataset = build_dataset(cfg)
    chosen = spread_over(dataset, args.images)
    side = clip.trunk.native_grid[0] * clip.trunk.patch
    pictures = torch.stack(
        [
            centre(clip.normalise(dataset[index]["inputs"].flip(0)), side)  # mmseg loads BGR
            for index in progress(chosen, desc="reading", unit="image")
        ]
    ).to(clip.device)
    batches = pictures.split(clip.trunk.windows_at_once(side, side))
    found = choose_neurons(
        clip,
        batches,
        Rule(0.0, args.layer, sparse=not args.no_filter),
        threshold=args.threshold,
        highest=args.highest,
        lowest=args.lowest,
        count=args.count,
    )
    print(f"{clip.name}, {len(chosen)} images, outliers are longer than {found.rule.threshold:.4g}")
    print("neurons  outlier patches, %")
    for number, share in found.tried.items():
        print(f"{number:7d}  {100 * share:.3f}")
    print(f"blocks up to {found.highest}: {found.neurons}")
    entries[clip.fingerprint] = {
        "model": clip.name,
        "pretrained": clip.pretrained,
        "neurons": found.neurons,
        "threshold": found.rule.threshold,
        "layer": found.rule.layer,
        "highest": found.highest,
        "filter": found.rule.sparse,
        "images": len(chosen),
        "dataset": type(dataset).__name__,
        "outlier_patches": found.tried,
    }
    with whole_file(args.out) as partial:
        partial.write_text(json.dumps(entries, indent=1) + "\n")


def centre(image: torch.Tensor, side: int) -> torch.Tensor:
    """The middle square of an image (3, H, W), its short side resized to ``side``."""
    height, width = image.shape[1:]
    factor = side / min(height, width)
    size = (max(side, round(height * factor)), max(side, round(width * factor)))
    image = F.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    return image[:, top : top + side, left : left + side]


if __name__ == "__main__":
    sys.exit(main())
