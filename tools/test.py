"""Evaluate one config, in OpenMMLab's manner.

python tools/test.py configs/cfg_toyland.py --work-dir work_dirs/toyland --show-dir pictures
python tools/test.py configs/cfg_voc21.py --cfg-options model.method=SC-CLIP model.pm=DBSCAN model.clip=ViT-L/14
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sfp.errors import SFPError, run_command
from sfp.files import only_one, sweep, unwritable
from sfp.plugin import require_mmseg

if TYPE_CHECKING:
    from mmengine.config import Config


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("config", help="a config file, such as configs/cfg_toyland.py")
    parser.add_argument(
        "--work-dir",
        type=Path,
        help="where results.json and logs go (default: work_dirs/<config's name>)",
    )
    parser.add_argument(
        "--show-dir", type=Path, help="draw each image's labels beside the truth into this folder"
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        metavar="KEY=VALUE",
        default=[],
        help="override config keys, such as model.pm=L2",
    )
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="forget an interrupted run in the work dir instead of continuing it",
    )
    parser.add_argument(
        "--launcher",
        choices=["none", "pytorch", "slurm", "mpi"],
        default="none",
        help="how ranks were started",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return run_command(evaluate, parser.parse_args())


def evaluate(args: argparse.Namespace) -> None:
    """Read a config and evaluate it: ``results.json`` in the work dir, mIoU printed.

    Raises:
        SFPError: wrong config, options, data or weights.
    """
    require_mmseg()
    from sfp.evaluation.config import check_dataset, read_config
    from sfp.evaluation.dataset import named_deaths
    from sfp.evaluation.provenance import config_hash

    cfg = read_config(args.config, args.cfg_options)
    config_sha256 = config_hash(cfg)
    cfg.launcher = args.launcher
    cfg.work_dir = str(
        args.work_dir or cfg.get("work_dir") or Path("work_dirs") / Path(args.config).stem
    )
    check_dataset(cfg)
    if args.show_dir:
        cfg.visualizer.save_dir = str(args.show_dir)
        cfg.default_hooks.visualization.draw = True
    if cfg.test_dataloader.get("num_workers", 0) == 0:
        cfg.test_dataloader.persistent_workers = False
    prepare_launcher(cfg)
    with contextlib.ExitStack() as held, named_deaths():
        hold(Path(cfg.work_dir), held)
        usual = logging.Handler.handleError
        held.callback(setattr, logging.Handler, "handleError", usual)
        logging.Handler.handleError = end_with_log(usual)
        run(cfg, args, config_sha256)


def end_with_log(
    usual: Callable[[logging.Handler, logging.LogRecord], None],
) -> Callable[[logging.Handler, logging.LogRecord], None]:
    """``logging.Handler.handleError`` that raises what kept a log from being written; the usual one goes on without the log."""

    def raise_error(handler: logging.Handler, record: logging.LogRecord) -> None:
        if isinstance(sys.exc_info()[1], OSError):
            raise
        usual(handler, record)

    return raise_error


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


def run(cfg: Config, args: argparse.Namespace, config_sha256: str) -> None:
    """Test as the config says; goes on with what an interrupted run left in the work dir.

    Raises:
        SFPError: wrong data, weights or options, or a work dir that can't be written.
    """
    from mmengine.dist import barrier, get_rank, get_world_size, is_main_process
    from mmengine.runner import Runner

    from sfp.evaluation.config import building
    from sfp.evaluation.counts import CountStore
    from sfp.evaluation.dataset import NamedFailures, check_task
    from sfp.evaluation.metric import ClassIoUMetric
    from sfp.evaluation.provenance import run_card, write_results
    from sfp.segmentor import SFPSegmentor

    with building(f"The evaluation of {args.config}"):
        runner = Runner.from_cfg(cfg)
        dataset, model = (
            runner.test_dataloader.dataset,
            getattr(runner.model, "module", runner.model),
        )
        runner.test_loop  # noqa: B018 - builds the evaluator, too
    metric = next(
        (metric for metric in runner.test_evaluator.metrics if isinstance(metric, ClassIoUMetric)),
        None,
    )
    if metric is None:
        raise SFPError(
            f"test_evaluator of {args.config} has no ClassIoUMetric; set it to dict(type='ClassIoUMetric')."
        )
    if not isinstance(model, SFPSegmentor):
        raise SFPError(
            f"The model of {args.config} is a {type(model).__name__}; set model.type to SFPSegmentor."
        )
    check_task(model.vocabulary, model.pipeline.protocol, dataset)
    card = run_card(config_sha256, model, model.task, dataset)
    store = CountStore(Path(cfg.work_dir) / "counts", card, get_rank())
    if args.fresh and is_main_process():
        store.clear()
    barrier()
    done = metric.resume(store, len(dataset.metainfo["classes"]))
    if done and is_main_process():
        print(f"continuing: {len(done)} of {len(dataset)} images are done (--fresh starts again)")
    runner.test_dataloader.sampler.leave_out(done)
    dataset.pipeline = NamedFailures(dataset.pipeline)
    started = time.time()
    try:
        runner.test()
    except SFPError:
        print(file=sys.stderr)  # end the progress bar's line
        raise
    except OSError as error:  # of mmengine's own logs and pictures
        raise unwritable(Path(error.filename or cfg.work_dir), error) from error
    finally:
        store.close()
    barrier()
    if is_main_process():
        path = Path(cfg.work_dir) / "results.json"
        result = write_results(
            path, model, model.task, dataset, metric, card, time.time() - started
        )
        store.clear()  # a finished run is measured anew when it is asked for again
        print(
            f"mIoU {result['mIoU']:.2f}  aAcc {result['aAcc']:.2f}  mAcc {result['mAcc']:.2f}  mIoU(present) {result['mIoU_present']:.2f}  "
            f"({result['images']} images, {result['seconds']:.0f} s, {get_world_size()} rank(s)) -> {path}"
        )
        if args.show_dir:
            print(f"pictures -> {args.show_dir / 'vis_data' / 'vis_image'}")


def prepare_launcher(cfg: Config) -> None:
    """Start the group of ranks; on machines without CUDA gloo's, as mmengine's own launchers would call CUDA.

    Raises:
        SFPError: the launcher named did not start this process.
    """
    import torch
    import torch.distributed as dist
    from mmengine.dist import init_dist

    if cfg.launcher == "none" or dist.is_initialized():
        return
    started_by = {"pytorch": "RANK", "slurm": "SLURM_PROCID", "mpi": "OMPI_COMM_WORLD_LOCAL_RANK"}[
        cfg.launcher
    ]
    if started_by not in os.environ:
        how = {
            "pytorch": "torchrun --nproc_per_node N",
            "slurm": "srun -n N python",
            "mpi": "mpirun -n N python",
        }[cfg.launcher]
        call = f"{how} tools/test.py CONFIG --launcher {cfg.launcher}"
        raise SFPError(
            f"--launcher {cfg.launcher} needs {how.split()[0]}, which did not start this; run {call}."
        )
    if cfg.launcher == "mpi" or torch.cuda.is_available():
        init_dist(cfg.launcher, **cfg.env_cfg.dist_cfg)
        return
    if cfg.launcher == "slurm":
        slurm = dict(RANK="SLURM_PROCID", WORLD_SIZE="SLURM_NTASKS", LOCAL_RANK="SLURM_LOCALID")
        os.environ.update({name: os.environ[own] for name, own in slurm.items()})
        os.environ.setdefault("MASTER_PORT", "29500")
        if "MASTER_ADDR" not in os.environ:
            nodes = subprocess.run(
                ["scontrol", "show", "hostname", os.environ["SLURM_NODELIST"]],
                capture_output=True,
                text=True,
                check=True,
            )
            os.environ["MASTER_ADDR"] = nodes.stdout.split()[0]
    dist.init_process_group("gloo")


if __name__ == "__main__":
    sys.exit(main())
