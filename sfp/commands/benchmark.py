"""Evaluate methods x backbones x datasets over the GPUs at hand, or on the CPU.

The same command again goes on where it stopped.

sfp benchmark --methods SFP SC-CLIP ClearCLIP --datasets voc21 voc20 ade20k
sfp benchmark --methods SFP "SFP:pm=L2,max_outliers=5" --backbones ViT-B/16 ViT-L/14
ViT-B/16:metaclip_400m --settings common
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sfp.errors import SFPError, run_command
from sfp.files import only_one, sweep
from sfp.options import HelpFormatter, add_config_options
from sfp.plugin import require_mmseg
from sfp.progress import progress


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="sfp benchmark",
        description=__doc__.split("\n\n")[0],
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["SFP"],
        metavar="NAME[:KEY=VALUE,...]",
        help="methods, with options of their own",
    )
    parser.add_argument(
        "--backbones",
        nargs="+",
        metavar="NAME[:TAG]",
        help="CLIP models; each dataset's own config's if not given",
    )
    parser.add_argument(
        "--datasets",
        nargs="+",
        default=["toyland"],
        metavar="NAME",
        help="names of configs/cfg_<name>.py",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("work_dirs/benchmark"), help="folder for the results"
    )
    parser.add_argument(
        "--settings",
        choices=["own", "common", "tcl"],
        default="own",
        help="each method's own settings, or one protocol for all",
    )
    parser.add_argument(
        "--devices", nargs="+", metavar="N", help="numbers of GPUs, or cpu; all GPUs if not given"
    )
    parser.add_argument(
        "--no-sharing",
        action="store_true",
        help="a pass of the images for each dataset, also where several share them",
    )
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="forget what interrupted cells have; finished ones stay until their folder is deleted",
    )
    add_config_options(parser, "model.prompts=photo")
    parser.add_argument("--run-group", type=Path, help=argparse.SUPPRESS)  # a worker's cells
    parser.add_argument(
        "--parent", type=int, help=argparse.SUPPRESS
    )  # the process that started this one, and whose end is its own
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(arguments)
    if args.parent:
        threading.Thread(target=end_with_parent, args=(args.parent,), daemon=True).start()
    if args.run_group:
        return run_command(work, args)
    failures: list[str] = []
    args.failures = failures
    return run_command(benchmark, args) or (1 if failures else 0)


def work(args: argparse.Namespace) -> None:
    """A worker: evaluate one group of cells."""
    require_mmseg()
    from sfp.evaluation.grid import load_group, run_group

    run_group(load_group(args.run_group), fresh=args.fresh)


def end_with_parent(parent: int) -> None:
    """Leave as soon as the process that started this one is gone, so that a killed program leaves
    nothing running behind.
    """
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


@dataclass
class Worker:
    """A process that evaluates a group on a device."""

    group: list
    device: str
    process: subprocess.Popen
    log: Path


def benchmark(args: argparse.Namespace) -> None:
    """Plan the grid, run what is left, print the table.

    Raises:
        SFPError: a wrong argument. Cells that fail are reported at the end, and the others go on.
    """
    require_mmseg()
    from sfp.evaluation.grid import Cell, free_devices, plan
    from sfp.evaluation.tables import collect, markdown

    devices = free_devices(args.devices)
    overrides = tuple(
        [*args.cfg_options, *([] if args.settings == "own" else [f"settings={args.settings}"])]
    )
    backbones = {
        dataset: args.backbones or ["Toyland" if dataset == "toyland" else "ViT-B/16"]
        for dataset in args.datasets
    }
    cells = [
        Cell(m, b, d, overrides, str(args.out))
        for m in args.methods
        for d in args.datasets
        for b in backbones[d]
    ]
    if len({cell.folder for cell in cells}) < len(cells):
        raise SFPError(
            "Two cells of the grid have one name; give each method, backbone and dataset once."
        )
    groups, finished, failed = plan(cells, share=not args.no_sharing)
    shared = sum(len(group) for group in groups) - len(groups)
    print(
        f"{len(cells)} cells: {len(finished)} finished, {sum(map(len, groups))} to do in "
        f"{len(groups)} passes "
        f"({shared} share one), {len(failed)} can't start; on {', '.join(devices)}"
    )
    with only_one(args.out, "--out"):
        sweep(args.out)
        failed.update(run_all(groups, devices, args))
    print()
    print(markdown(collect([cell.folder for cell in cells])))
    for cell, reason in failed.items():
        print(f"failed: {cell}: {reason}", file=sys.stderr)
        args.failures.append(reason)


def run_all(groups: list[list], devices: list[str], args: argparse.Namespace) -> dict:
    """Run groups, one at a time on each device; returns the failed cells with the reason. Ctrl-C
    stops the workers.

    Of a group that fails each cell is tried by itself, so that one dataset's fault doesn't take
    others with it.
    """
    waiting, running, failed = [(f"group{i}", group) for i, group in enumerate(groups)], [], {}
    bar = progress(total=sum(map(len, groups)), unit="cell", disable=not groups)
    try:
        while waiting or running:
            for device in devices:
                if waiting and all(worker.device != device for worker in running):
                    running.append(start(*waiting.pop(0), device, args))
            time.sleep(0.2)
            for worker in [worker for worker in running if worker.process.poll() is not None]:
                running.remove(worker)
                if (
                    worker.process.returncode and len(worker.group) > 1
                ):  # the others may be sound: each by itself, from where it stopped
                    bar.write(f"apart after a failure: {', '.join(map(str, worker.group))}")
                    waiting += [
                        (f"{worker.log.stem}_{i}", [cell]) for i, cell in enumerate(worker.group)
                    ]
                    continue
                bar.update(len(worker.group))
                if worker.process.returncode:
                    reason = last_line(worker.log)
                    failed.update({cell: f"{reason} (log: {worker.log})" for cell in worker.group})
                bar.write(
                    f"{'failed' if worker.process.returncode else 'done'}: "
                    f"{', '.join(map(str, worker.group))}"
                )
    finally:
        bar.close()
        for worker in running:
            worker.process.terminate()
            worker.process.wait()
    return failed


def start(name: str, group: list, device: str, args: argparse.Namespace) -> Worker:
    """Start a worker on a device; its cells and its log go by the name."""
    from sfp.evaluation.grid import save_group

    folder = args.out / "logs"
    save_group(group, folder / f"{name}.json")
    command = [
        sys.executable,
        "-m",
        "sfp",
        "benchmark",
        "--run-group",
        str(folder / f"{name}.json"),
        "--parent",
        str(os.getpid()),
        *(["--fresh"] if args.fresh else []),
    ]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": visible_devices(device)}
    log = folder / f"{name}.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, env=environment
        )
    return Worker(group, device, process, log)


def visible_devices(device: str) -> str:
    """What CUDA_VISIBLE_DEVICES must be for a process that is to see one of this one's devices.

    Args:
        device: "cpu", or the number of a GPU as this process counts them: a place in its own
            CUDA_VISIBLE_DEVICES, which may name other numbers or UUIDs.
    """
    if device == "cpu":
        return ""
    own = os.environ.get("CUDA_VISIBLE_DEVICES")
    return device if own is None else own.split(",")[int(device)].strip()


def last_line(log: Path) -> str:
    """Why a worker stopped: its last line."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else "it ended without a word"
