"""Many pictures on Ray Data (the extra ``ray``): an actor for each GPU, or for a share of the
cores.

In a program of one's own:

    dataset = ray.data.read_parquet("photos").map_batches(
        SegmentBatch, fn_constructor_kwargs=dict(names=["cat", "sofa"]), num_gpus=1, concurrency=8,
        batch_size=32)
    dataset.write_parquet("labels")
"""

from __future__ import annotations

import io
import json
import math
import pickle
import socket
import threading
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from sfp.errors import SFPError
from sfp.files import sweep
from sfp.many.recipe import Recipe
from sfp.many.run import Engine, Summary, Units
from sfp.many.worker import Outcome, Seconds, Worker

_KNOCK = 5.0  # seconds that an address may take to answer
_JOIN = 45.0  # seconds that a cluster may take to let one in; after 60 Ray ends the whole program
_ROW = 4  # units that an actor is given at a time
_COLUMNS = ("image", "bytes", "jpg", "jpeg", "png", "webp", "data", "content", "path")


class SegmentBatch:
    """Segments batches of a Ray dataset: a callable class for ``Dataset.map_batches``.

    A batch has a column of pictures: arrays (H, W, 3) uint8 as ``read_images`` gives them, files'
    bytes as ``read_binary_files`` does, structs of ``bytes`` and ``path`` as in Hugging Face's
    tables, or paths. It comes back without it, and with the columns ``labels`` (bytes of a PNG
    file), ``areas`` (JSON: each name's share of the picture) and ``error`` ("" where there is
    none; the other two are empty then).

    Args:
        names, background: see ``Segmenter``.
        column: of the pictures; the first of image, bytes, jpg, jpeg, png, webp, data, content,
            path if None.
        options: the others of ``Segmenter``.

    Raises:
        SFPError: see ``Segmenter``; or a batch has no such column.
    """

    def __init__(
        self,
        names: Sequence[str | Sequence[str]],
        *,
        background: str | Sequence[str] | None = None,
        column: str | None = None,
        **options: Any,
    ):
        from sfp.api import Segmenter

        _use_own_cores()
        self.names, self.background, self.column = names, background, column
        self.segmenter = Segmenter(**options)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        column = self.column or next((each for each in _COLUMNS if each in batch), "")
        if column not in batch:
            raise SFPError(
                f"A batch has no column {column or 'of pictures'!r}, only {', '.join(batch)}; give"
                " column=NAME."
            )
        pictures = [_Cell(value) for value in batch[column]]
        found: dict[str, list] = {"labels": [], "areas": [], "error": []}
        for result in self.segmenter.many(
            pictures,
            self.names,
            background=self.background,
            keep_scores=False,
            yield_errors=True,
        ):
            failed = isinstance(result, SFPError)
            found["error"].append(str(result) if failed else "")
            found["areas"].append("" if failed else json.dumps(result.areas))
            png = io.BytesIO()
            if not failed:
                result.label_image().save(png, "png")
            found["labels"].append(png.getvalue())
        kept = {name: values for name, values in batch.items() if name != column}
        return {**kept, **{name: np.array(values, object) for name, values in found.items()}}


class _Cell:
    """A table's picture of any kind; it is a ``StoredImage``."""

    def __init__(self, value: Any):
        value = value if not isinstance(value, dict) else value.get("bytes") or value.get("path")
        self.value, self.path = value, value if isinstance(value, str) else ""

    def read_pixels(self) -> np.ndarray:
        from sfp.images import decode_image, read_image

        if isinstance(self.value, bytes):
            return decode_image(self.value, "A picture of the batch")
        return read_image(self.value)


def on_ray(
    recipe: Recipe,
    out: Path,
    address: str | None = None,
    actors: int | None = None,
    fresh: bool = False,
) -> Engine:
    """Actors of a Ray cluster, each with one GPU, or where there is none with its share of the
    cores. They read and write the same files as this process, so all machines must have them under
    the same paths.

    An actor that dies is started again by Ray, and what it was given is given out again; what it
    had finished is found done.

    Args:
        address: of a running cluster: "HOST:PORT", "ray://HOST:PORT" or "auto"; this machine alone
            if None.
        actors: how many; as many as there are GPUs, or without any one for two cores, if None.

    Raises:
        SFPError: a GPU is named, Ray is not installed, or there is no cluster at the address:
            within 5 seconds where nothing answers, within a minute where something else does.
    """
    if actors is not None and actors < 1:
        raise SFPError(f"--actors {actors} must be at least 1.")
    if str(recipe.device).startswith("cuda:"):
        raise SFPError(
            f"The device is {recipe.device}, but Ray gives each actor a GPU, which is cuda:0 to it;"
            " leave --device out, and start Ray with the GPUs that it may use."
        )

    def engine(units: Units, summary: Summary) -> Iterator[Outcome]:
        ray = connect(address)
        died = False
        try:
            for outcome in _outcomes(ray, recipe, out.resolve(), actors, fresh, units, summary):
                died = died or outcome.was_done  # by an actor that didn't live to say so
                yield outcome
        finally:
            ray.shutdown()
            if died:
                sweep(out)

    return engine


def connect(address: str | None) -> ModuleType:
    """Ray, connected to a cluster.

    Raises:
        SFPError: see ``on_ray``.
    """
    try:
        import ray
    except ImportError as error:
        raise SFPError(
            f"The engine ray needs Ray, which can't be imported ({error}); pip install 'ray[data]'."
        ) from error
    advice = "start one with ray start --head, or leave --address out to use this machine alone"
    if address not in (None, "auto", "local"):
        _knock(address, advice)
    own = dict(address=address or "local", log_to_driver=False, logging_level="ERROR")
    if own["address"] == "local":
        own["include_dashboard"] = False
    failed: list[BaseException] = []

    def join() -> None:
        try:
            ray.init(**own)
        except BaseException as error:
            failed.append(error)

    # Ray's own processes end with the thread that started them, so that a cluster of one's own is
    # not started in one that ends; joining another may take minutes and can't be bounded otherwise
    joining = threading.Thread(target=join, daemon=True)
    if own["address"] == "local":
        join()
    else:
        joining.start()
        joining.join(_JOIN)
    where = "on this machine" if address in (None, "auto", "local") else f"at {address}"
    if joining.is_alive():
        raise SFPError(f"Something {where} answers, but no Ray cluster let this in; {advice}.")
    if failed:
        reason = str(failed[0]).strip().split("\n")[0][:160]
        raise SFPError(f"There is no Ray cluster {where} ({reason}); {advice}.") from failed[0]
    return ray


def _knock(address: str, advice: str) -> None:
    """Raises SFPError where nothing listens at an address: Ray itself would ask for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise SFPError(f"--address {address} is none; write HOST:PORT, ray://HOST:PORT or auto.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _KNOCK).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SFPError(f"There is no Ray cluster at {address} ({reason}); {advice}.") from error


def _outcomes(
    ray: ModuleType,
    recipe: Recipe,
    out: Path,
    actors: int | None,
    fresh: bool,
    units: Units,
    summary: Summary,
) -> Iterator[Outcome]:
    import ray.data

    has = ray.cluster_resources()
    gpus = 0 if recipe.device == "cpu" else int(has.get("GPU", 0))
    cores = max(1, int(has.get("CPU", 1)))
    count = actors or gpus or max(1, cores // 2)
    if gpus:
        share = dict(num_gpus=1 / math.ceil(count / gpus))
    else:  # an actor must fit into any machine: one that fits into none is waited for, for ever
        own = [int(n["Resources"].get("CPU", 0)) for n in ray.nodes() if n["Alive"]]
        share = dict(num_cpus=max(1, min([cores // count, *(each for each in own if each)])))
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    given = list(units)
    each = max(1, min(_ROW, len(given) // (4 * count)))
    walked = iter(given)
    rows = [{"units": pickle.dumps(row)} for row in iter(lambda: list(islice(walked, each)), [])]
    summary.workers = count
    summary.begin()
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Actor,
        fn_constructor_args=(pickle.dumps(recipe), str(out), fresh),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(count, len(rows))),
        **share,
    )
    for row in dataset.iter_rows():
        found, reason, seconds = pickle.loads(row["found"])
        summary.seconds += seconds
        yield from found
        if reason:
            raise SFPError(reason)


class _Actor:
    """A worker in a process of Ray's."""

    def __init__(self, recipe: bytes, out: str, fresh: bool):
        _use_own_cores()
        self.worker, self.wrong = None, ""
        try:
            self.worker = Worker(pickle.loads(recipe).build(), Path(out), fresh)
        except SFPError as error:  # it would be started again for ever
            self.wrong = str(error)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        found, reason = [], self.wrong
        if self.worker is not None:
            self.worker.seconds = Seconds()
            try:
                for units in batch["units"]:
                    for outcome in self.worker.work(pickle.loads(units)):
                        found.append(outcome)
            except SFPError as error:
                reason = str(error)
        seconds = self.worker.seconds if self.worker else Seconds()
        return {"found": np.array([pickle.dumps((found, reason, seconds))], object)}


def _use_own_cores() -> None:
    """As many threads as the actor has cores; Ray itself says so by OMP_NUM_THREADS."""
    import ray
    import torch

    own = ray.get_runtime_context().get_assigned_resources().get("CPU")
    if own:
        torch.set_num_threads(max(1, min(torch.get_num_threads(), int(own))))
