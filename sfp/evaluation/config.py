"""Configs of evaluations: a dataset's config, a method's settings from ``configs/methods``,
overrides.

``settings`` chooses the protocol: ``own``, the default, is that of the method's authors; ``common``
the dataset's config for all methods; ``tcl`` the common one with TCL's sizes, short side 448 and
windows of 448 at stride 224, on any dataset.
"""

from __future__ import annotations

import inspect
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from mmengine.config import Config
from mmengine.registry import Registry
from mmengine.runner import Runner
from mmseg.registry import MODELS

import sfp
from sfp.clip import load_clip
from sfp.clip.clip import FrozenCLIP
from sfp.errors import SFPError, refuse_want_of_memory, unknown_choice
from sfp.files import CONFIGS, find_config
from sfp.methods import list_methods
from sfp.options import Range, check_type, parse_options
from sfp.pipeline import Protocol, Vocabulary
from sfp.segmentor import SFPSegmentor

TCL = {"short_side": 448, "model.window": 448, "model.stride": 224}
SETTINGS = ("own", "common", "tcl")
_EXAMPLE = "configs/cfg_toyland.py"
# what configs are made of: by the time of an override it has gone into other keys
_READ_ALREADY = {
    "data": "the environment variable SFP_DATA",
    "data_roots": "test_dataloader.dataset.data_root",
    "test_pipeline": "test_dataloader.dataset.pipeline",
    "dataset": "test_dataloader.dataset",
    "custom_imports": "it in a config file",
    "load_from": "model.pretrained",
}
_USED = ("model", "test_dataloader", "test_evaluator", "short_side", "settings", "work_dir")
_LOADING = ("batch_size", "num_workers", "dataset")


def read_config(file: str | Path, options: list[str]) -> Config:
    """A config, by its path or the name of its dataset, with overrides ``KEY=VALUE``.

    ``model.method=NAME`` brings the settings of ``configs/methods/NAME.py``: its ``model``, what
    its ``datasets`` say of the config's ``dataset``, and what its ``backbones`` say of both; with
    ``settings=common`` or ``settings=tcl`` its ``model`` alone. A method without such a file comes
    as published: ``purify`` and ``pm`` of the config are another method's. ``settings=tcl`` then
    sets TCL's short side, window and stride. Further overrides win. ``short_side`` is set in the
    dataset's pipeline.

    Raises:
        SFPError: no such file (the closest is offered), a mistake in it, or an option that isn't
            KEY=VALUE.
    """
    path = find_config(file)
    cfg = _from_file(path)
    overrides = parse_options(options, "--cfg-options")
    settings = overrides.get("settings", "own")
    if settings not in SETTINGS:
        raise unknown_choice("settings", settings, SETTINGS)
    _check_keys(cfg, overrides)
    method = overrides.get("model.method")
    if method is not None and "model" in cfg and method != cfg.model.get("method"):
        clip = overrides.get("model.clip", cfg.model.get("clip", ""))
        _take_method(cfg, method, clip, common=settings != "own")
    if settings == "tcl" and "model" in cfg:
        cfg.merge_from_dict(TCL)
    try:
        cfg.merge_from_dict(overrides)
    except (TypeError, KeyError, IndexError) as error:  # a key below one that holds no keys
        raise SFPError(
            f"--cfg-options {' '.join(options)} doesn't fit {path} ({error}); name keys that it "
            f"has."
        ) from error
    for key in ("model", "test_dataloader", "test_evaluator"):
        if not isinstance(cfg.get(key), dict):
            raise SFPError(
                f"The config {path} has no {key}=dict(...);"
                f" name one that evaluates a dataset, such as {_EXAMPLE}."
            )
    dataset = cfg.test_dataloader.get("dataset")
    if not isinstance(dataset, dict) or "type" not in dataset:
        raise SFPError(
            f"The config {path} has no test_dataloader.dataset.type;"
            f" name one of a dataset, such as {_EXAMPLE}."
        )
    if cfg.get("load_from"):  # which would replace the weights after they were hashed
        raise SFPError(f"The config {path} sets load_from; name the weights in model.pretrained.")
    for key in ("test_cfg", "val_cfg"):
        if (cfg.get(key) or {}).get("fp16"):
            raise SFPError(f"The config {path} sets {key}.fp16; set model.precision='fp16'.")
    loading = dict(batch_size=(1, Range(1)), num_workers=(2, Range(0)))
    for key, (usual, bounds) in loading.items():
        value = cfg.test_dataloader.setdefault(key, usual)
        check_type(f"test_dataloader.{key}", value, Annotated[int, bounds], usual)
    _set_short_side(cfg)
    return cfg


def _from_file(path: Path) -> Config:
    logging.disable(logging.INFO)  # mmengine reports each environment variable that a config reads
    within = CONFIGS.parent == Path(sfp.__file__).parent and "SFP_DATA" not in os.environ
    if within:  # data/ beside a wheel's configs would lie in site-packages: in the working folder
        os.environ["SFP_DATA"] = "data"
    if os.getcwd() not in sys.path:  # where custom_imports finds modules, as with python -m
        sys.path.append(os.getcwd())
    try:
        _require_python(path)
        return Config.fromfile(path)
    except SFPError:
        raise
    except Exception as error:  # a config is a program: anything can go wrong in it
        refuse_want_of_memory(error, f"reading the config {path}")
        cause: BaseException = error  # mmengine's own words list the whole sys.path
        while isinstance(cause, ImportError) and (inner := cause.__cause__ or cause.__context__):
            cause = inner
        raise SFPError(
            f"The config {path} can't be read ({type(cause).__name__}: {cause});"
            " put it right, or name another."
        ) from error
    finally:
        logging.disable(logging.NOTSET)
        if within:
            del os.environ["SFP_DATA"]


def _require_python(path: Path) -> None:
    """Raises SFPError for a config that is no Python, or that has such a one as its base.

    mmengine's reader of YAML runs what a file names, though YAML looks like data.
    """
    if path.suffix != ".py":
        raise SFPError(f"The config {path} is no Python file; write it like {_EXAMPLE}.")
    for base in Config._get_base_files(str(path)):
        _require_python(Path(Config._get_cfg_path(base, str(path))[0]))


def _check_keys(cfg: Config, overrides: Mapping[str, Any]) -> None:
    """Raises SFPError for an override that would change nothing."""
    of_runner = set(inspect.signature(Runner.__init__).parameters) - {"self", "cfg"}
    known = {*_USED, *_READ_ALREADY, *of_runner, *cfg}
    for key in overrides:
        top, _, rest = key.partition(".")
        if top not in known:
            raise unknown_choice("config key", key, sorted(known))
        if top in _READ_ALREADY:
            raise SFPError(
                f"--cfg-options sets {key}, which the config has used already;"
                f" set {_READ_ALREADY[top]} instead."
            )
        loading = top == "test_dataloader" and rest.split(".")[0] not in _LOADING
        if top not in _USED or loading:
            raise SFPError(
                f"--cfg-options sets {key}, which mmengine's own runner alone reads;"
                f" leave it out: {', '.join(_USED)} are used here, and of test_dataloader"
                f" {', '.join(_LOADING)}."
            )


def _take_method(cfg: Config, method: str, clip: str, common: bool) -> None:
    """Merge a method's settings into a dataset's config."""
    for settings in _settings(cfg, method, clip)[: 1 if common else None]:
        cfg.merge_from_dict(settings)


def _settings(cfg: Config, method: str, clip: str) -> list[dict]:
    """What ``configs/methods`` says of a method, then for the config's dataset, then for the
    backbone.
    """
    if not re.fullmatch(r"[\w.+-]{1,100}", str(method)):  # the name of a file
        raise unknown_choice("method", str(method)[:100], list_methods())
    file = f"methods/{method.removesuffix('-ablation')}.py"  # an ablation has its method's settings
    beside = Path(cfg.filename).parent / file
    path = beside if beside.is_file() else CONFIGS / file
    own = _from_file(path) if path.is_file() else Config(dict(model=dict(purify=None, pm=None)))
    dataset = cfg.get("dataset")
    backbone = str(clip).replace("/", "-").removesuffix("-quickgelu")
    further = (own.get("datasets", {}), own.get("backbones", {}).get(backbone, {}))
    return [dict(model=own.model), *(dict(settings.get(dataset, {})) for settings in further)]


def dataset_options(cfg: Config) -> dict[str, Any]:
    """The method's options that its authors chose for the config's dataset; none of
    ``settings=common`` and ``settings=tcl``.
    """
    if cfg.get("settings", "own") != "own":
        return {}
    found = Config({})
    for settings in _settings(cfg, cfg.model.method, cfg.model.get("clip", ""))[1:]:
        found.merge_from_dict(settings)
    return method_options(found.get("model", {}))


def _set_short_side(cfg: Config) -> None:
    """Write ``short_side`` into the pipeline's ``Resize``."""
    short_side = cfg.get("short_side")
    if short_side is None:
        return
    if not isinstance(short_side, int) or short_side < 1:
        raise SFPError(f"short_side={short_side!r} is no number of pixels; give one such as 336.")
    steps = cfg.test_dataloader.dataset.get("pipeline", [])
    resizes = [step for step in steps if step.get("type") == "Resize"]
    if not resizes:
        raise SFPError(
            f"short_side={short_side} is given, but the pipeline of {cfg.filename} has no Resize;"
            " leave it out."
        )
    for step in resizes:
        step.scale = (2048, short_side)


def method_options(model: Mapping[str, Any]) -> dict[str, Any]:
    """What a config's ``model`` says to the method: the keys that nothing else takes."""
    others = {"type", *inspect.signature(SFPSegmentor.__init__).parameters}
    return {k: value for k, value in Protocol.split(model)[1].items() if k not in others}


def load_frozen(model: Mapping[str, Any]) -> FrozenCLIP:
    """The CLIP that a config's ``model`` names, by all that it says of the weights.

    Raises:
        SFPError: what ``load_clip`` refuses.
    """
    keys = set(inspect.signature(load_clip).parameters) - {"model", "pretrained"}
    options = {key: model[key] for key in keys & set(model)}
    return load_clip(model["clip"], model.get("weights") or model["pretrained"], **options)


def read_vocabulary(model: Mapping[str, Any]) -> Vocabulary:
    """The classes that a config's ``model`` names; see ``Vocabulary.of_config``."""
    keys = ("name_path", "names", "name_separator")
    return Vocabulary.of_config(**{key: model[key] for key in keys if key in model})


def read_protocol(model: Mapping[str, Any]) -> Protocol:
    """What a config's ``model`` says of windows, thresholds and refinement.

    Raises:
        SFPError: what ``Protocol`` refuses.
    """
    return Protocol.split(model)[0]


def build_model(cfg: Config) -> SFPSegmentor:
    """The segmentor of a config.

    Raises:
        SFPError: its type is another one, or it can't be built.
    """
    require_type("model.type", cfg.model.get("type"), MODELS)
    with building("The model"):
        model = MODELS.build(cfg.model)
    if not isinstance(model, SFPSegmentor):
        raise SFPError(
            f"The model of {cfg.filename} is a {type(model).__name__};"
            " set model.type to SFPSegmentor."
        )
    return model


def require_type(what: str, kind: object, registry: Registry) -> None:
    """Raises SFPError for the name of a type that mmseg's registry lacks, offering the closest.

    Those of this package are listed.
    """
    if isinstance(kind, str) and registry.get(kind) is None:
        known = registry.module_dict
        own = [name for name, cls in known.items() if cls.__module__.startswith("sfp.")]
        raise unknown_choice(what, kind, own, known)


@contextmanager
def building(what: str) -> Iterator[None]:
    """Errors of mmengine's builders as one sentence about a part of a config.

    Raises:
        SFPError: whatever went wrong, such as a key that a class doesn't take; its own sentence
            where it has one.
    """
    try:
        yield
    except SFPError:
        raise
    except OSError as error:
        refuse_want_of_memory(error, f"building {what[0].lower()}{what[1:]}")
        where, reason = error.filename or "a file of its own", error.strerror or error
        raise SFPError(
            f"{what} can't read or write {where} ({reason});"
            " check the path, its permissions and the room on its disk."
        ) from error
    except Exception as error:  # a class of mmengine's, mmseg's or the user's
        refuse_want_of_memory(error, f"building {what[0].lower()}{what[1:]}")
        if "need at least one array to concatenate" in str(error):  # its words for no images
            raise SFPError(
                f"{what} has no images;"
                " check test_dataloader.dataset: its folders, list and suffixes."
            ) from error
        reason = (str(error).strip().splitlines() or [""])[-1].split(". ")[0]
        raise SFPError(
            f"{what} can't be built ({type(error).__name__}: {reason}); check its keys."
        ) from error


def check_dataset(cfg: Config) -> None:
    """Raises SFPError where a folder or list of the dataset is missing or empty, before any
    loading.
    """
    dataset = cfg.test_dataloader.dataset
    if dataset.type == "ToylandDataset":
        return
    root = Path(os.path.normpath(dataset.get("data_root") or "."))
    hint = (
        "make it by sfp prepare, set test_dataloader.dataset.data_root, or SFP_DATA to the folder"
        " that holds all datasets"
    )
    if not root.is_dir():
        raise SFPError(f"The data root {root} of {dataset.type} does not exist; {hint}.")
    for key, folder in dataset.get("data_prefix", {}).items():
        if folder and not (root / folder).is_dir():
            raise SFPError(
                f"The folder {root / folder} (data_prefix.{key} of {dataset.type}) does not exist;"
                f" {hint}."
            )
    if next(root.glob(".unfinished_*"), None):
        raise SFPError(f"The preparation of {root} was interrupted; run sfp prepare again.")
    if dataset.get("ann_file"):
        _check_list(root / dataset.ann_file, f"ann_file of {dataset.type}", hint)


def _check_list(path: Path, key: str, hint: str) -> None:
    """Raises SFPError where a list of images is missing or empty, or has a bad line or a name
    twice.
    """
    if not path.is_file():
        raise SFPError(f"The list {path} ({key}) does not exist; {hint}.")
    again = "put a sound copy in its place"
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise SFPError(f"The list {path} ({key}) can't be read ({error}); {again}.") from error
    if not any(lines):
        raise SFPError(f"The list {path} ({key}) is empty; {again}.")
    for number, line in enumerate(lines, 1):
        if not line or "\0" in line:
            raise SFPError(
                f"Line {number} of the list {path} ({key}) is no name of an image; {again}."
            )
    name, times = Counter(lines).most_common(1)[0]
    if times > 1:
        raise SFPError(f"The list {path} ({key}) has {name!r} {times} times; leave one.")
