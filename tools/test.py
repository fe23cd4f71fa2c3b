"""Evaluate one config, in OpenMMLab's manner.

python tools/test.py configs/cfg_toyland.py --work-dir work_dirs/toyland --show-dir pictures
python tools/test.py configs/cfg_voc21.py --cfg-options model.method=SC-CLIP model.clip=ViT-L/14
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sfp.errors import SFPError, run_command
from sfp.files import make_folder, only_one, sweep
from sfp.plugin import require_mmseg

if TYPE_CHECKING:
    from torch import Tensor

    from sfp.evaluation.loop import Part


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("config", help="a config file, such as configs/cfg_toyland.py")
    add(
        "--work-dir",
        type=Path,
        help="where results.json goes (default: work_dirs/<config's name>)",
    )
    add("--show-dir", type=Path, help="draw each image's labels beside the truth into this folder")
    add(
        "--cfg-options",
        nargs="+",
        metavar="KEY=VALUE",
        default=[],
        help="override config keys, such as model.pm=L2",
    )
    add("--fresh", action="store_true", help="forget an interrupted run instead of continuing it")
    add(
        "--launcher",
        choices=["none", "pytorch", "slurm", "mpi"],
        default="none",
        help="how ranks were started",
    )
    add("--debug", action="store_true", help="show the traceback of an error")
    return run_command(evaluate, parser.parse_args())


def evaluate(args: argparse.Namespace) -> None:
    """Evaluate a config: ``results.json`` in the work dir, mIoU printed.

    Goes on with what an interrupted run left in the work dir.

    Raises:
        SFPError: wrong config, options, data or weights, or a work dir that can't be written.
    """
    require_mmseg()
    from mmengine.dist import barrier, get_rank, get_world_size, is_main_process
    from mmseg.registry import MODELS

    from sfp.evaluation import loop
    from sfp.evaluation.config import building, read_config
    from sfp.evaluation.counts import CountStore
    from sfp.evaluation.dataset import build_dataset, check_task, named_deaths
    from sfp.evaluation.metric import ignore_index
    from sfp.evaluation.provenance import run_provenance, write_results
    from sfp.segmentor import SFPSegmentor

    cfg = read_config(args.config, args.cfg_options)
    work_dir = args.work_dir or Path(cfg.get("work_dir") or f"work_dirs/{Path(args.config).stem}")
    start_ranks(args.launcher)
    with contextlib.ExitStack() as held, named_deaths():
        hold(work_dir, held)
        dataset = build_dataset(cfg)
        with building("The model"):
            model = MODELS.build(cfg.model)
        if not isinstance(model, SFPSegmentor):
            raise SFPError(
                f"The model of {args.config} is a {type(model).__name__};"
                " set model.type to SFPSegmentor."
            )
        check_task(model.vocabulary, model.task.protocol, dataset)
        part = loop.Part(dataset, model.task, ignore_index(cfg))
        store = CountStore(work_dir / "counts", run_provenance(cfg, model, part), get_rank())
        held.callback(store.close)
        if args.fresh and is_main_process():
            store.clear()
        barrier()
        part.resume(store)
        if part.resumed and is_main_process():
            print(
                f"continuing: {part.resumed} of {len(dataset)} images are done"
                " (--fresh starts again)"
            )
        started, loader = time.time(), cfg.test_dataloader
        loop.evaluate(
            model,
            [part],
            batch_size=loader.get("batch_size", 1),
            workers=loader.get("num_workers", 0),
            after_image=drawing(args.show_dir, model.dataset_meta) if args.show_dir else None,
        )
        barrier()
        figures = part.figures()
        if is_main_process():
            path, seconds = work_dir / "results.json", time.time() - started
            result = write_results(path, cfg, model, part, figures, store.provenance, seconds)
            store.clear()  # a finished run is measured anew when it is asked for again
            report(result, figures, part, path, get_world_size())
            if args.show_dir:
                print(f"pictures -> {args.show_dir}")


def report(result: dict, figures: object, part: Part, path: Path, ranks: int) -> None:
    """Print the classes' figures, and the means in one line."""
    from sfp.evaluation.metric import class_table

    print(class_table(figures, part.classes))
    means = dict(mIoU="mIoU", aAcc="aAcc", mAcc="mAcc", mIoU_present="mIoU(present)")
    print(
        "  ".join(f"{shown} {result[key]:.2f}" for key, shown in means.items()),
        f" ({result['images']} images, {result['seconds']:.0f} s, {ranks} rank(s)) -> {path}",
    )


def drawing(folder: Path, meta: dict) -> Callable[[Part, dict, Tensor], None]:
    """A function that draws an image's labels beside the truth into a folder."""
    import mmcv
    from mmengine.structures import PixelData
    from mmseg.visualization import SegLocalVisualizer

    make_folder(folder, "choose another --show-dir")
    visualizer = SegLocalVisualizer(alpha=0.6)
    visualizer.dataset_meta = meta

    def draw(part: Part, item: dict, labels: Tensor) -> None:
        sample = item["data_samples"].clone()
        sample.pred_sem_seg = PixelData(data=labels[None].cpu())
        image = mmcv.imread(sample.img_path, channel_order="rgb")
        file = folder / f"{Path(sample.img_path).stem}.png"
        visualizer.add_datasample(file.stem, image, sample, out_file=str(file), with_labels=False)
        if not file.is_file():  # OpenCV fails without a word
            raise SFPError(f"The picture {file} can't be written; check the room on its disk.")

    return draw


def hold(work_dir: Path, held: contextlib.ExitStack) -> None:
    """Let this run alone write to the work dir: its main process holds it for all ranks.

    Raises:
        SFPError: another run holds it; on every rank, so that none waits for the others.
    """
    from mmengine.dist import all_gather_object, is_main_process

    refused = None
    try:
        if is_main_process():
            held.enter_context(only_one(work_dir, "--work-dir"))
            sweep(work_dir)
    except SFPError as error:
        refused = str(error)
    if refused := next(filter(None, all_gather_object(refused)), None):
        raise SFPError(refused)


def start_ranks(launcher: str) -> None:
    """Start the group of ranks; on machines without CUDA gloo's, as mmengine's launchers call CUDA.

    Raises:
        SFPError: the launcher named did not start this process.
    """
    import torch
    import torch.distributed as dist
    from mmengine.dist import init_dist

    if launcher == "none" or dist.is_initialized():
        return
    variables = {
        "pytorch": ("RANK", "torchrun --nproc_per_node N"),
        "slurm": ("SLURM_PROCID", "srun -n N python"),
        "mpi": ("OMPI_COMM_WORLD_LOCAL_RANK", "mpirun -n N python"),
    }
    variable, how = variables[launcher]
    if variable not in os.environ:
        raise SFPError(
            f"--launcher {launcher} needs {how.split()[0]}, which did not start this;"
            f" run {how} tools/test.py CONFIG --launcher {launcher}."
        )
    if launcher == "mpi" or torch.cuda.is_available():
        init_dist(launcher, backend="nccl" if torch.cuda.is_available() else "gloo")
        return
    if launcher == "slurm":
        slurm = dict(RANK="SLURM_PROCID", WORLD_SIZE="SLURM_NTASKS", LOCAL_RANK="SLURM_LOCALID")
        os.environ.update({name: os.environ[given] for name, given in slurm.items()})
        os.environ.setdefault("MASTER_PORT", "29500")
        if "MASTER_ADDR" not in os.environ:
            command = ["scontrol", "show", "hostname", os.environ["SLURM_NODELIST"]]
            nodes = subprocess.run(command, capture_output=True, text=True, check=True)
            os.environ["MASTER_ADDR"] = nodes.stdout.split()[0]
    dist.init_process_group("gloo")


if __name__ == "__main__":
    sys.exit(main())
