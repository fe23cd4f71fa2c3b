"""Evaluate one config: a method on a dataset, in OpenMMLab's manner.

sfp evaluate toyland
sfp evaluate configs/cfg_toyland.py --work-dir work_dirs/toyland --show-dir pictures
sfp evaluate configs/cfg_voc21.py --cfg-options model.method=SC-CLIP model.clip=ViT-L/14
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sfp.datasets.layouts import LAYOUTS
from sfp.errors import SFPError, run_command
from sfp.files import find_config, make_folder, only_one, sweep, whole_file
from sfp.options import HelpFormatter, add_config_options, parse_options
from sfp.plugin import require_mmseg

if TYPE_CHECKING:
    from torch import Tensor

    from sfp.evaluation.loop import Part
    from sfp.evaluation.ranks import Watch


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="sfp evaluate",
        description=__doc__.split("\n\n")[0],
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("config", help="a config file, such as configs/cfg_toyland.py, or a dataset's name")
    add(
        "--work-dir",
        type=Path,
        help="where results.json goes (default: work_dirs/<config's name>); that of another method"
        " or other options stays there under a name of its own",
    )
    add("--show-dir", type=Path, help="draw the truth and each image's labels into this folder")
    add_config_options(parser, "model.pm=L2")
    add("--fresh", action="store_true", help="forget an interrupted run instead of continuing it")
    add(
        "--launcher",
        choices=["none", "pytorch", "slurm", "mpi"],
        default="none",
        help="how ranks were started",
    )
    add("--debug", action="store_true", help="show the traceback of an error")
    return run_command(evaluate, parser.parse_args(arguments))


def evaluate(args: argparse.Namespace) -> None:
    """Evaluate a config: ``results.json`` in the work dir, mIoU printed.

    Goes on with what an interrupted run left in the work dir.

    Raises:
        SFPError: wrong config, options, data or weights, or a work dir that can't be written.
    """
    config = find_config(args.config)
    parse_options(args.cfg_options, "--cfg-options")  # a mistake is told at once
    require_mmseg()
    from mmengine.dist import get_rank, get_world_size, is_main_process

    from sfp.evaluation import loop
    from sfp.evaluation.config import build_model, read_config
    from sfp.evaluation.counts import CountStore
    from sfp.evaluation.dataset import build_dataset, check_task, named_deaths
    from sfp.evaluation.metric import check_metric
    from sfp.evaluation.provenance import keep_other, run_provenance, write_results
    from sfp.evaluation.ranks import wait_for_all

    cfg = read_config(config, args.cfg_options)
    work_dir = args.work_dir or Path(cfg.get("work_dir") or f"work_dirs/{config.stem}")
    watch = start_ranks(args.launcher)
    with contextlib.ExitStack() as held, named_deaths():
        if watch is not None:
            held.callback(watch.leave)
        hold(work_dir, held)
        dataset = build_dataset(cfg)
        check_metric(cfg, dataset)
        model = build_model(cfg)
        check_task(model.vocabulary, model.task.protocol, dataset)
        part = loop.Part(dataset, model.task)
        store = CountStore(work_dir / "counts", run_provenance(cfg, model, part), get_rank())
        held.callback(store.close)
        if args.fresh and is_main_process():
            store.clear()
        wait_for_all()
        part.resume(store)
        if part.resumed and is_main_process():
            print(
                f"continuing: {part.resumed} of {len(dataset)} images are done"
                " (--fresh starts again)"
            )
        started, loader = time.time(), cfg.test_dataloader
        palette, name = model.dataset_meta["palette"], model.pipeline.method.name
        loop.evaluate(
            model,
            [part],
            batch_size=loader.get("batch_size", 1),
            workers=loader.get("num_workers", 0),
            after_image=drawing(args.show_dir, palette, name) if args.show_dir else None,
        )
        wait_for_all()
        figures = part.figures()
        if is_main_process():
            path, seconds = work_dir / "results.json", time.time() - started
            if kept := keep_other(path, store.provenance["config"]):
                print(f"{path} was of another method or other options: kept as {kept}")
            result = write_results(path, cfg, model, part, figures, store.provenance, seconds)
            store.clear()  # a finished run is measured anew when it is asked for again
            report(result, figures, part, path, get_world_size(), cfg.get("dataset"))
            if args.show_dir:
                print(f"pictures of this run's images -> {args.show_dir}")


def report(
    result: dict, figures: object, part: Part, path: Path, ranks: int, name: str | None
) -> None:
    """Print the classes' figures, and the means in one line.

    Args:
        name: the config's ``dataset``.
    """
    from sfp.evaluation.metric import class_table

    print(class_table(figures, part.classes))
    if absent := result["absent"]:
        shift = _of_shift(absent, part.classes, name)
        print(f"No label is of the classes {', '.join(absent)}{shift}.")
    means = dict(mIoU="mIoU", aAcc="aAcc", mAcc="mAcc", mIoU_present="mIoU(present)")
    print(
        "  ".join(f"{shown} {result[key]:.2f}" for key, shown in means.items()),
        f" ({result['images']} images, {result['seconds']:.0f} s, {ranks} rank(s)) -> {path}",
    )


def _of_shift(absent: Sequence[str], classes: Sequence[str], name: str | None) -> str:
    """What classes without a label say of the labels: shifted by one, they lack the first class or
    the last. A few images of any dataset may lack these beside others.
    """
    ends = {classes[0], classes[-1]}
    if name in LAYOUTS and ends & set(absent):
        return f"; if the images should have them, labels may be shifted: run sfp check {name}"
    if name != "toyland" and len(absent) == 1 and absent[0] in ends:
        return "; if the images should have it, labels may be shifted by one"
    return ""


def drawing(
    folder: Path, palette: Sequence[Sequence[int]], method: str
) -> Callable[[Part, dict, Tensor], None]:
    """A function that draws the truth and an image's labels, over the image side by side, with the
    classes that occur below, into a folder.
    """
    import mmcv
    import numpy as np

    from sfp.drawing import sheet

    make_folder(folder, "choose another --show-dir")
    colours = np.array(palette, np.uint8)

    def draw(part: Part, item: dict, labels: Tensor) -> None:
        sample = item["data_samples"]
        image = mmcv.imread(sample.img_path, channel_order="rgb")
        panels, occurring = [], set()
        for title, tensor in (("truth", sample.gt_sem_seg.data[0]), (method, labels.cpu())):
            own, drawn = tensor.numpy(), image.copy()
            known = own < len(colours)  # the others are not counted
            drawn[known] = 0.4 * image[known] + 0.6 * colours[own[known]]
            panels.append((title, drawn))
            occurring |= set(np.unique(own[known]).tolist())
        legend = [(part.classes[label], tuple(palette[label])) for label in sorted(occurring)]
        with whole_file(folder / f"{Path(sample.img_path).stem}.png") as partial:
            sheet([panels], legend, min(len(image), 512)).save(partial)

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


_LAUNCHERS = {  # what starts the ranks, and its variables: rank, number of ranks, rank on this host
    "pytorch": ("torchrun --nproc_per_node N", "RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "slurm": ("srun -n N python", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    "mpi": (
        "mpirun -n N python",
        *(f"OMPI_COMM_WORLD_{key}" for key in ("RANK", "SIZE", "LOCAL_RANK")),
    ),
}


def start_ranks(launcher: str) -> Watch | None:
    """Start the group of ranks, each on a GPU of its own where there are some.

    It is gloo's, also with GPUs: all that ranks exchange are counts, and gloo notices at once that
    a process has ended.

    Returns:
        What watches the other ranks; None where there is none.

    Raises:
        SFPError: the launcher named did not start this process, its variables are none of a rank's,
            a port's and a host's, or there are more ranks on a host than GPUs.
    """
    import torch
    import torch.distributed as dist

    from sfp.evaluation.ranks import MEETING, Watch

    if launcher == "none" or dist.is_initialized():
        return None
    how, *names = _LAUNCHERS[launcher]
    if launcher != "pytorch":
        os.environ.setdefault("MASTER_PORT", "29500")
    if launcher == "slurm" and "MASTER_ADDR" not in os.environ:
        os.environ["MASTER_ADDR"] = first_slurm_host()
    numbers = []
    for name in (*names, "MASTER_PORT"):
        value = os.environ.get(name, "")
        if not value.isdecimal():
            raise SFPError(
                f"--launcher {launcher} needs {how.split()[0]}, but {name} is {value!r} here;"
                f" run {how} tools/test.py CONFIG --launcher {launcher}."
            )
        numbers.append(int(value))
    rank, size, local, port = numbers
    if rank >= size or not 0 < port < 65536:
        raise SFPError(
            f"There is no rank {rank} of {size} at port {port}; check {', '.join(names)} and"
            " MASTER_PORT."
        )
    gpus = torch.cuda.device_count()
    own = 0 if launcher == "slurm" and gpus == 1 and _has_its_own_gpu() else local
    if gpus and own >= gpus:
        raise SFPError(
            f"Rank {rank} of {size} is number {local} of its host, and sees {gpus} GPU(s), numbered"
            f" from 0; start at most {gpus} ranks a host, or give each one of its own (srun"
            " --gpus-per-task=1)."
        )
    address = os.environ.get("MASTER_ADDR", "")
    try:  # torch would ask for a minute or more, without a word
        socket.getaddrinfo(address or ".", port)
    except (OSError, UnicodeError) as error:
        raise SFPError(
            f"The host {address!r} of rank 0 is not known ({error}); set MASTER_ADDR to its name or"
            " address."
        ) from error
    os.environ.update(zip(("RANK", "WORLD_SIZE", "LOCAL_RANK"), map(str, numbers), strict=False))
    if gpus:
        torch.cuda.set_device(own)
    try:
        dist.init_process_group("gloo", timeout=MEETING)
        watch = Watch(address, port, rank, size)
    except (RuntimeError, ValueError) as error:  # a port that is taken, or nobody there
        reason = str(error).strip().splitlines()[0].split(". ")[0]
        raise SFPError(
            f"Rank {rank} of {size} can't meet the others at {address} port {port} ({reason}); set"
            " MASTER_ADDR and MASTER_PORT to a free port of rank 0's host."
        ) from error
    watch.start()
    return watch


def _has_its_own_gpu() -> bool:
    """Whether Slurm shows each task its own GPU, which is number 0 to it."""
    return any(os.environ.get(key) for key in ("SLURM_GPUS_PER_TASK", "SLURM_GPU_BIND"))


def first_slurm_host() -> str:
    """The first host of a Slurm job.

    Raises:
        SFPError: this is no Slurm job, or Slurm's ``scontrol`` doesn't answer.
    """
    command = ["scontrol", "show", "hostname", os.environ.get("SLURM_NODELIST", "")]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise SFPError(
            f"--launcher slurm needs srun, and {' '.join(command)} gives no host ({error}); start"
            " it by srun, or set MASTER_ADDR to the host of rank 0."
        ) from error
