"""Find the channels that are over-active in single tokens of a CLIP: RF-CLIP's model.channels.

RF-CLIP publishes eight for B/16 and eight for L/14, found on OpenAI's weights. What is counted
stands in sfp/experiments/channels.py.

python tools/probe_channels.py configs/cfg_toyland.py --images 20 --sigma 3
python tools/probe_channels.py configs/cfg_ade20k.py --cfg-options model.clip=ViT-B/32
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from sfp.errors import SFPError, run_command
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
    parser.add_argument("--channels", type=int, default=8, help="how many channels at most")
    parser.add_argument("--sigma", type=float, default=5.0, help="RF-CLIP's sigma")
    add_config_options(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return run_command(probe, parser.parse_args())


def probe(args: argparse.Namespace) -> None:
    """Print the most often over-active channels, and the option that names them.

    Raises:
        SFPError: wrong arguments, config or data, or no channel above the line.
    """
    require_mmseg()
    from sfp.evaluation.config import load_frozen, read_config, read_protocol
    from sfp.evaluation.dataset import build_dataset, spread_over
    from sfp.experiments.channels import over_active
    from sfp.pipeline.windows import cut, window_grid

    if min(args.images, args.channels) < 1 or not 0 < args.sigma < float("inf"):
        raise SFPError(
            f"--images is {args.images}, --channels {args.channels}, --sigma {args.sigma}; give at"
            " least 1 image and 1 channel, and a sigma above 0."
        )
    cfg = read_config(args.config, args.cfg_options)
    protocol, dataset = read_protocol(cfg.model), build_dataset(cfg)
    clip = load_frozen(cfg.model)
    chosen = spread_over(dataset, args.images)

    def batches() -> Iterator[Tensor]:
        for index in progress(chosen, desc="probing", unit="image"):
            image = clip.normalise(dataset[index]["inputs"].flip(0))  # mmseg loads BGR
            grid = window_grid(*image.shape[1:], protocol.window, protocol.stride)
            yield torch.stack([cut(image, window) for window in grid])

    shares = over_active(clip, batches(), args.sigma)
    found = [c for c in shares.argsort(descending=True).tolist() if shares[c] > 0][: args.channels]
    if not found:
        raise SFPError(
            f"No channel of {clip.name} is above {args.sigma} / {clip.trunk.width} of a token's sum"
            " in these images: RF-CLIP would change no token; give a smaller --sigma, and"
            " model.sigma the same."
        )
    print(
        f"{clip.name}, {len(chosen)} images: share of patches in which the channel is over-active"
    )
    for channel in found:
        print(f"{channel:6d} {float(shares[channel]):.5f}")
    print(f"model.channels=[{','.join(map(str, sorted(found)))}] model.sigma={args.sigma:g}")


if __name__ == "__main__":
    sys.exit(main())
