"""The models that come with this package."""

from __future__ import annotations

import json
from pathlib import Path

from sfp.clip.checkpoints import Checkpoint, read_checkpoint
from sfp.errors import SFPError
from sfp.files import file_digest

# beside each file a .json has its SHA-256 and how it was made
BUILT_IN = {
    name: Path(__file__).parent / f"{name.lower()}.safetensors"
    for name in ("Toyland", "Toyland-clean")
}


def built_in_name(architecture: str, tag: str) -> str | None:
    """The built-in weights that are meant: the tag's, else the model's; None if neither."""
    if architecture in BUILT_IN and tag.lower() in ("openai", "toyland"):  # defaults
        return architecture
    return {name.lower(): name for name in BUILT_IN}.get(tag.lower())


def read_built_in(name: str) -> Checkpoint:
    """The weights of a built-in model.

    Raises:
        SFPError: they are missing or damaged.
    """
    file = BUILT_IN[name]
    if not file.is_file():
        raise SFPError(
            f"The built-in {name} weights are missing at {file}; install the package again, "
            "or run tools/dev/train_toyland.py."
        )
    if file_digest(file, "sha256") != json.loads(file.with_suffix(".json").read_text())["sha256"]:
        raise SFPError(
            f"The built-in {name} weights at {file} are damaged (SHA-256 differs); "
            "install the package again."
        )
    return read_checkpoint(file)
