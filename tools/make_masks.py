"""Make the region masks of a dataset or of pictures beforehand, for LaVG and CorrCLIP.

The masks go to the cache, where these methods find them by the picture's pixels, the model and the
settings; with --out also to a folder, one .npz with "masks" (M, H, W) for each picture, which
masks=FOLDER reads. What is there already is not made again: an interrupted run is continued by the
same command.

python tools/make_masks.py configs/cfg_voc21.py --cfg-options model.method=LaVG
python tools/make_masks.py photos/ --masks sam2:points=32 --out masks
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from sfp.clip import load_clip
from sfp.errors import SFPError, run_command
from sfp.files import make_folder, sweep, whole_file
from sfp.methods import METHODS
from sfp.options import HelpFormatter, add_config_options
from sfp.progress import progress
from sfp.regions import MadeMasks, load_masks
from sfp.stages import Picture

if TYPE_CHECKING:
    from mmengine.config import Config

    from sfp.clip.clip import FrozenCLIP


@dataclass(frozen=True)
class Job:
    """A picture's file, and the stem of its masks below the output folder."""

    image: Path
    stem: Path

    @property
    def picture(self) -> Picture:
        """Known by its file alone."""
        return Picture(torch.empty(3, 0, 0), path=os.fspath(self.image))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=HelpFormatter
    )
    parser.add_argument("inputs", nargs="+", help="a config file, or pictures and their folders")
    parser.add_argument(
        "--masks",
        help="a program, such as cut or sam2:points=32; if not given the config's model.masks, for"
        " pictures cut",
    )
    parser.add_argument("--out", type=Path, help="a folder for the masks, besides the cache")
    parser.add_argument("--device", help="where the model runs; a GPU if there is one")
    parser.add_argument("--precision", help="fp32, bf16 or fp16, as the method will have it")
    add_config_options(parser, "model.method=LaVG")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return run_command(command, parser.parse_args())


def command(args: argparse.Namespace) -> None:
    """Make the masks that aren't there yet.

    Raises:
        SFPError: wrong arguments or config, a model that can't be had, or pictures that can't be
            read; all others have their masks then.
    """
    configs = [path for path in args.inputs if path.endswith(".py")]
    if configs and len(args.inputs) > 1:
        raise SFPError(f"{configs[0]} is a config; give it alone, or pictures and folders.")
    if args.cfg_options and not configs:
        raise SFPError("--cfg-options is for a config; give pictures without it.")
    if configs:
        jobs, masks, clip = of_config(configs[0], args)
    else:
        jobs = find_pictures([Path(path) for path in args.inputs])
        # any CLIP will do: it only says where the model runs, and how precisely
        masks = args.masks or "cut"
        clip = load_clip("Toyland", device=args.device, precision=args.precision)
    source = load_masks(masks, clip)
    if not isinstance(source, MadeMasks):
        raise SFPError(f"The masks {masks} are given already; name a program, such as cut.")
    if args.out:
        clash_free(jobs)
        make_folder(args.out, "choose another folder with --out")
        sweep(args.out)
    looked = progress(jobs, desc="looking", unit="image", leave=False)
    todo = [job for job in looked if not is_done(job, source, args.out)]
    if not todo:
        print(f"nothing to do: all {len(jobs)} images have their masks")
        return
    if len(todo) < len(jobs):
        print(f"continuing: {len(jobs) - len(todo)} of {len(jobs)} images have their masks")
    failed: list[SFPError] = []
    for job in progress(todo, desc=f"masks by {source.program.name}", unit="image"):
        try:
            make(job, source, args.out)
        except SFPError as error:
            failed.append(error)
    print(f"{len(todo) - len(failed)} images: {args.out or 'the cache'} has their masks")
    if failed:
        raise SFPError(f"{len(failed)} of {len(jobs)} images have no masks; the first: {failed[0]}")


def of_config(file: str, args: argparse.Namespace) -> tuple[list[Job], Any, FrozenCLIP]:
    """A config's pictures, what makes their masks, and the CLIP of its method."""
    from sfp.plugin import require_mmseg

    require_mmseg()
    from sfp.evaluation.config import load_frozen, read_config
    from sfp.evaluation.dataset import build_dataset, short_name

    given = dict(device=args.device, precision=args.precision)
    options = [f"model.{key}={value}" for key, value in given.items() if value]
    cfg: Config = read_config(file, [*args.cfg_options, *options])
    known = METHODS.options(cfg.model.method)
    masks = args.masks or cfg.model.get("masks", known.get("masks"))
    if masks is None:
        raise SFPError(
            f"{cfg.model.method} has no masks; add --cfg-options model.method=LaVG, or --masks."
        )
    dataset = build_dataset(cfg)
    paths = [dataset.get_data_info(index)["img_path"] for index in range(len(dataset))]
    jobs = [Job(Path(path), Path(short_name(path)).with_suffix("")) for path in paths]
    return jobs, masks, load_frozen(cfg.model)


def find_pictures(paths: list[Path]) -> list[Job]:
    """Files as given, and the pictures in folders and their subfolders.

    Raises:
        SFPError: there is no such file, or a folder has none.
    """
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind != "PDF"}
    jobs: list[Job] = []
    for path in paths:
        if path.is_dir():
            inside = [own for own in sorted(path.rglob("*")) if own.suffix.lower() in endings]
            inside = [own for own in inside if not own.name.startswith(".")]
            if not inside:
                raise SFPError(f"The folder {path} has no pictures; name one that has some.")
            jobs += [Job(own, own.relative_to(path).with_suffix("")) for own in inside]
        elif path.is_file():
            jobs.append(Job(path, Path(path.stem)))
        else:
            raise SFPError(f"There is no picture or folder {path}; check the path.")
    return jobs


def clash_free(jobs: list[Job]) -> None:
    """Raises SFPError where two pictures' masks would have one name."""
    seen: dict[Path, Path] = {}
    for job in jobs:
        if job.stem in seen:
            raise SFPError(
                f"{seen[job.stem]} and {job.image} would both have their masks in {job.stem}.npz;"
                " rename one, or leave out --out."
            )
        seen[job.stem] = job.image


def file_of(job: Job, out: Path) -> Path:
    return out / job.stem.parent / f"{job.stem.name}.npz"


def is_done(job: Job, source: MadeMasks, out: Path | None) -> bool:
    """Whether a picture has its masks by these settings; one that can't be read has none."""
    if out is None:
        try:
            return source.is_kept(job.picture)
        except SFPError:
            return False
    try:
        with np.load(file_of(job, out)) as saved:
            return str(saved["made_by"]) == made_by(source)
    except Exception:  # there is none, or it is damaged
        return False


def make(job: Job, source: MadeMasks, out: Path | None) -> None:
    """Make a picture's masks, or take them from the cache, and write them whole."""
    regions = source(job.picture)
    if out is None:
        return
    file = file_of(job, out)
    make_folder(file.parent)
    with whole_file(file) as partial:
        stack = regions.stack(regions.size).numpy()
        np.savez_compressed(partial, masks=stack, made_by=made_by(source))


def made_by(source: MadeMasks) -> str:
    """What stands in a file of the program that made it, as JSON."""
    return json.dumps(dict(fingerprint=source.fingerprint, settings=source.program.settings))


if __name__ == "__main__":
    sys.exit(main())
