"""List the CLIP models, each with the weights that open_clip knows of it.

sfp models
sfp models L-14
"""

from __future__ import annotations

import argparse
import fnmatch
from collections.abc import Sequence

from sfp.errors import SFPError, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="sfp models", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "part", nargs="?", default="", help="of a name, or a pattern such as 'ViT-B*', in any case"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return run_command(show, parser.parse_args(arguments))


def show(args: argparse.Namespace) -> None:
    """Print each model, and the tags that ``--pretrained`` takes for it.

    Raises:
        SFPError: no name has that part.
    """
    from sfp.clip.built_in import BUILT_IN
    from sfp.clip.models import list_models

    tags: dict[str, Sequence[str]] = {name: ["built in, needs no download"] for name in BUILT_IN}
    tags |= {name: known.tags for name, known in list_models().items() if known.tags}
    pattern = args.part.lower() if set("*?[") & set(args.part) else f"*{args.part.lower()}*"
    found = [name for name in tags if fnmatch.fnmatchcase(name.lower(), pattern)]
    if not found:
        raise SFPError(f"No model has {args.part!r} in its name; sfp models lists them all.")
    for name in found:
        print(f"{name:24} {', '.join(tags[name])}")
