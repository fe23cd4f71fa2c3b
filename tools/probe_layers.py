"""Which layer's patches are the most coherent: AUROC of patch-pair similarity, for CLIPSeg's attention_layer (methods.md 1.10).

The last column is the mean number of components that CLIPSeg's epsilon makes of a window's patches: with one, its G changes nothing.

python tools/probe_layers.py configs/cfg_toyland.py --cfg-options test_dataloader.dataset.split=tune test_dataloader.dataset.scenes=40
python tools/probe_layers.py configs/cfg_ade20k.py --images 200 --out probe.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from sfp.errors import SFPError, run_command
from sfp.plugin import require_mmseg


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("config", help="a config file, such as configs/cfg_toyland.py")
    parser.add_argument("--images", type=int, default=200, help="how many images, spread over the dataset")
    parser.add_argument("--epsilon", type=float, default=0.75, help="CLIPSeg's epsilon, for the number of components")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument(
        "--cfg-options", nargs="+", metavar="KEY=VALUE", default=[], help="override config keys, such as model.clip=ViT-L/14"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return run_command(probe, parser.parse_args())


def probe(args: argparse.Namespace) -> None:
    """Print the table of layers and features, and the layer whose keys are the most coherent.

    Raises:
        SFPError: wrong config or data, or no image with patches of two classes.
    """
    require_mmseg()
    from mmengine.registry import init_default_scope
    from mmseg.registry import DATASETS

    from sfp.clip import load_clip
    from sfp.clip.coherence import FEATURES, joined_heads, layer_coherence, nearest_labels
    from sfp.clip.trunk import Hook, LayerState
    from sfp.config import check_dataset, read_config
    from sfp.methods.connected import components
    from sfp.methods.parts import cosine_similarity
    from sfp.pipeline.windows import cut, window_grid

    if args.images < 1:
        raise SFPError(f"--images is {args.images}; give at least 1.")
    cfg = read_config(args.config, args.cfg_options)
    check_dataset(cfg)
    init_default_scope("mmseg")
    clip = load_clip(cfg.model.clip, cfg.model.pretrained, precision=cfg.model.get("precision"))
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(args.images, len(dataset))).round().astype(int))
    found: dict[tuple[str, int], list[float]] = {}

    def count(state: LayerState) -> None:
        near = cosine_similarity(joined_heads(state.k)) >= args.epsilon
        labels = components(near | torch.eye(near.shape[-1], dtype=torch.bool, device=near.device))
        found.setdefault(("components", state.layer), []).extend(float(len(own.unique())) for own in labels)

    layers = range(1, clip.trunk.layers + 1)
    for index in tqdm(chosen, desc="probing", unit="image"):
        item = dataset[int(index)]
        image = clip.normalise(item["inputs"].flip(0))  # mmseg loads BGR
        size = tuple(image.shape[1:])
        labels = nearest_labels(item["data_samples"].gt_sem_seg.data[0], size)
        grid = window_grid(*size, cfg.model.window, cfg.model.stride)
        windows, truth = (torch.stack([cut(whole, window) for window in grid]) for whole in (image, labels[None]))
        for key, values in layer_coherence(clip, windows, truth[:, 0]).items():
            found.setdefault(key, []).extend(values)
        with torch.inference_mode():
            clip.trunk.run(windows.to(clip.device), [Hook(count, layers)])
    means = {key: float(np.mean(values)) for key, values in found.items() if values}
    if ("k", 1) not in means:
        raise SFPError("No window has patches of two classes; probe more images with --images.")
    print(f"{clip.name}, {len(chosen)} images: mean AUROC of patch-pair similarity as a classifier of 'same class'")
    print("layer " + "".join(f"{name:>9}" for name in FEATURES) + "  components")
    for layer in layers:
        print(f"{layer:5d} " + "".join(f"{means[name, layer]:9.4f}" for name in FEATURES) + f"{means['components', layer]:12.1f}")
    best = max(range(1, clip.trunk.layers), key=lambda layer: means["k", layer])
    print(f"model.attention_layer={best}  (keys, AUROC {means['k', best]:.4f})")
    if args.out:
        figures = {name: {str(layer): means[name, layer] for layer in layers} for name in (*FEATURES, "components")}
        counts = figures.pop("components")
        card = dict(model=clip.name, weights_sha256=clip.fingerprint, images=len(chosen), auroc=figures, components=counts)
        args.out.write_text(json.dumps(card, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
