"""Configs of evaluations: a dataset's config, a method's own settings from ``configs/methods``, overrides, in this order.

``settings`` chooses the protocol: ``own`` (unless told) is that of the method's authors, ``common`` the dataset's config for all
methods, ``tcl`` the common one with TCL's sizes, short side 448 and windows of 448 at stride 224, on any dataset.
"""

from __future__ import annotations

import argparse
import logging
import re
from pathlib import Path

from mmengine.config import Config, DictAction

from sfp.errors import SFPError, unknown_choice
from sfp.methods import list_methods

CONFIGS = Path(__file__).parent.parent / "configs"
TCL = {"short_side": 448, "model.window": 448, "model.stride": 224}


def read_config(file: str | Path, options: list[str]) -> Config:
    """A config with overrides ``KEY=VALUE``.

    ``model.method=NAME`` brings the settings of ``configs/methods/NAME.py``: its ``model``, what its ``datasets`` say
    of the config's ``dataset``, and what its ``backbones`` say of both; with ``settings=common`` or ``settings=tcl`` its
    ``model`` alone. A method without such a file comes as published: ``purify`` and ``pm`` of the config are another
    method's. ``settings=tcl`` then sets TCL's short side, window and stride. Further overrides win. ``short_side`` is set
    in the dataset's pipeline.

    Raises:
        SFPError: no such file (the closest is offered), a mistake in it, or an option that isn't KEY=VALUE.
    """
    path = Path(file)
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else CONFIGS
        raise unknown_choice("config file", str(file), [str(p) for p in sorted(folder.glob("cfg_*.py"))])
    cfg = _from_file(path)
    overrides = _parse(options)
    method, settings = overrides.get("model.method"), overrides.get("settings", "own")
    if method is not None and "model" in cfg and method != cfg.model.get("method"):
        clip = overrides.get("model.clip", cfg.model.get("clip", ""))
        _take_method(cfg, method, clip, common=settings != "own")
    if settings == "tcl" and "model" in cfg:
        cfg.merge_from_dict(TCL)
    cfg.merge_from_dict(overrides)
    for key in ("model", "test_dataloader", "test_evaluator"):
        if key not in cfg:
            raise SFPError(f"The config {path} has no {key}; name one that evaluates a dataset, such as configs/cfg_toyland.py.")
    _set_short_side(cfg)
    return cfg


def _from_file(path: Path) -> Config:
    logging.disable(logging.INFO)  # mmengine tells of each environment variable that a config reads
    try:
        return Config.fromfile(path)
    except Exception as error:  # a config is a program: anything can go wrong in it
        raise SFPError(f"The config {path} can't be read: {type(error).__name__}: {error}") from error
    finally:
        logging.disable(logging.NOTSET)


def _parse(options: list[str]) -> dict:
    """Overrides by dotted key."""
    for option in options:
        if "=" not in option:
            raise SFPError(f"--cfg-options got {option!r}; write KEY=VALUE, such as model.pm=L2.")
    if not options:
        return {}
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg-options", nargs="+", action=DictAction)
    overrides = parser.parse_args(["--cfg-options", *options]).cfg_options
    if overrides.get("settings", "own") not in ("own", "common", "tcl"):
        raise unknown_choice("settings", overrides["settings"], ("own", "common", "tcl"))
    return overrides


def _take_method(cfg: Config, method: str, clip: str, common: bool) -> None:
    """Merge a method's settings into a dataset's config."""
    if not re.fullmatch(r"[\w.-]{1,100}", str(method)):  # the name of a file
        raise unknown_choice("method", str(method)[:100], list_methods())
    beside = Path(cfg.filename).parent / "methods" / f"{method}.py"
    path = beside if beside.is_file() else CONFIGS / "methods" / f"{method}.py"
    own = _from_file(path) if path.is_file() else Config(dict(model=dict(purify=None, pm=None)))
    cfg.merge_from_dict(dict(model=own.model))
    if common:
        return
    dataset = cfg.get("dataset")
    backbone = str(clip).replace("/", "-").removesuffix("-quickgelu")
    for settings in (own.get("datasets", {}), own.get("backbones", {}).get(backbone, {})):
        cfg.merge_from_dict(dict(settings.get(dataset, {})))


def _set_short_side(cfg: Config) -> None:
    """Write ``short_side`` into the pipeline's ``Resize``."""
    short_side = cfg.get("short_side")
    if short_side is None:
        return
    if not isinstance(short_side, int) or short_side < 1:
        raise SFPError(f"short_side={short_side!r} is no number of pixels; 336 is usual.")
    resizes = [step for step in cfg.test_dataloader.dataset.get("pipeline", []) if step.get("type") == "Resize"]
    if not resizes:
        raise SFPError(f"short_side={short_side} is given, but the pipeline of {cfg.filename} has no Resize; leave it out.")
    for step in resizes:
        step.scale = (2048, short_side)


def check_dataset(cfg: Config) -> None:
    """Raises SFPError where a folder or list of the dataset is missing, before any weights are loaded."""
    dataset = cfg.test_dataloader.dataset
    if dataset.type == "ToylandDataset":
        return
    root = Path(dataset.get("data_root") or ".")
    hint = "set test_dataloader.dataset.data_root, or SFP_DATA to the folder that holds all datasets"
    if not root.is_dir():
        raise SFPError(f"The data root {root} of {dataset.type} does not exist; {hint}.")
    for key, folder in dataset.get("data_prefix", {}).items():
        if folder and not (root / folder).is_dir():
            raise SFPError(f"The folder {root / folder} (data_prefix.{key} of {dataset.type}) does not exist; {hint}.")
    if dataset.get("ann_file") and not (root / dataset.ann_file).is_file():
        raise SFPError(f"The list {root / dataset.ann_file} (ann_file of {dataset.type}) does not exist; {hint}.")
