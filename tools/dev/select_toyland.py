"""Choose among the checkpoints of tools/dev/train_toyland.py and install the choice as the built-in
Toyland weights.

    python tools/dev/select_toyland.py --work-dir work_dirs/toyland
    python tools/dev/select_toyland.py --work-dir work_dirs/toyland_clean --model Toyland-clean

Every checkpoint segments the ``tune`` scenes, which are neither trained on nor evaluated on, by
several methods; the one with the best average mIoU is kept. The table goes to ``selection.json`` in
the work dir.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from sfp.clip import load_clip
from sfp.clip.built_in import BUILT_IN
from sfp.clip.text_bank import TextBank
from sfp.datasets import toyland
from sfp.errors import SFPError, run_command
from sfp.files import whole_file
from sfp.images import resize_short_side
from sfp.methods import build_method
from sfp.pipeline import Pipeline, Task, Vocabulary

JUDGES = {
    "CLIP": ("CLIP", {}),
    "MaskCLIP bare": ("MaskCLIP", dict(variant="bare")),
    "ClearCLIP": ("ClearCLIP", {}),
    "SCLIP": ("SCLIP", {}),
    "NACLIP": ("NACLIP", {}),
    "SFP": ("SFP", {}),
    "SFP purify=False": ("SFP", dict(purify=False)),
    "SFP-release": ("SFP-release", {}),
}


def mean_iou(pipeline: Pipeline, scenes: list[toyland.Scene]) -> float:
    """mIoU in percent over scenes."""
    vocabulary = Vocabulary.from_names(toyland.CLASSES)
    task = Task(pipeline.encode_text(vocabulary), pipeline.protocol)
    classes = len(toyland.CLASSES)
    confusion = np.zeros((classes, classes), np.int64)
    for scene in scenes:
        image = pipeline.method.clip.normalise(resize_short_side(scene.image, 336))
        (((labels, _),),) = pipeline.segment([image], [task], [scene.labels.shape])
        pairs = scene.labels.astype(np.int64) * classes + labels.numpy()
        confusion += np.bincount(pairs.ravel(), minlength=classes**2).reshape(classes, classes)
    hits = np.diag(confusion)
    return float(100 * np.nanmean(hits / (confusion.sum(0) + confusion.sum(1) - hits)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument(
        "--model",
        choices=list(BUILT_IN),
        default="Toyland",
        help="which of the built-in models they are of",
    )
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--from-step", type=int, default=0, help="leave earlier checkpoints out")
    parser.add_argument(
        "--out",
        type=Path,
        help="where the weights go, a .json beside them; the model's own place if not given",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return run_command(select, parser.parse_args())


def select(args: argparse.Namespace) -> None:
    """Judge the checkpoints, write the table, install the best.

    Raises:
        SFPError: no scene, or no checkpoint.
    """
    if args.scenes < 1:
        raise SFPError(f"--scenes is {args.scenes}; give at least 1.")
    out = args.out or BUILT_IN[args.model]
    torch.manual_seed(0)
    scenes = [toyland.make_scene("tune", i) for i in range(args.scenes)]
    table: dict[str, dict[str, float]] = {}
    files = [
        f
        for f in sorted(args.work_dir.glob("step_*.safetensors"))
        if int(f.stem[5:]) >= args.from_step
    ]
    if not files:
        raise SFPError(
            f"There is no step_*.safetensors from step {args.from_step} on in {args.work_dir}; "
            f"run tools/dev/train_toyland.py first."
        )
    for file in tqdm(files, desc="checkpoints"):
        clip = load_clip("Toyland", str(file), device="cpu")
        bank = TextBank(clip, cache_dir=False)
        row = {
            name: mean_iou(Pipeline(build_method(method, clip, **options), bank), scenes)
            for name, (method, options) in JUDGES.items()
        }
        table[file.stem] = row
        tqdm.write(
            f"{file.stem}  mean {np.mean(list(row.values())):5.2f}  "
            + "  ".join(f"{k} {v:.1f}" for k, v in row.items())
        )
    best = max(table, key=lambda stem: np.mean(list(table[stem].values())))
    with whole_file(args.work_dir / "selection.json") as partial:
        partial.write_text(json.dumps(dict(chosen=best, tune_mIoU=table), indent=2) + "\n")
    weights = load_file(args.work_dir / f"{best}.safetensors")
    with whole_file(out) as partial:
        save_file(weights, partial, metadata=dict(quick_gelu="true", model=args.model))
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    provenance = {
        "sha256": digest,
        "made_by": "tools/dev/train_toyland.py, then tools/dev/select_toyland.py",
        "step": int(best[5:]),
        "tune_scenes": args.scenes,
        "tune_mIoU": {name: round(value, 2) for name, value in table[best].items()},
    }
    with whole_file(out.with_suffix(".json")) as partial:
        partial.write_text(json.dumps(provenance, indent=2) + "\n")
    print(f"{best} -> {out} ({out.stat().st_size / 2**20:.1f} MiB, SHA-256 {digest})")


if __name__ == "__main__":
    sys.exit(main())
