"""List the methods and the outlier detectors, or say what one of them takes.

sfp methods
sfp methods SC-CLIP
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence
from dataclasses import fields

from sfp.errors import run_command, unknown_choice
from sfp.registry import registered_names

_KINDS = {"methods": "sfp.methods", "detectors": "sfp.outliers", "refiners": "sfp.refiners"}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="sfp methods", description=__doc__.split("\n\n")[0])
    parser.add_argument("name", nargs="?", help="a method, a detector or a refiner")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return run_command(show, parser.parse_args(arguments))


def show(args: argparse.Namespace) -> None:
    """Print the lists, or one's description and options.

    Raises:
        SFPError: there is none of that name.
    """
    known = {kind: registered_names(package) for kind, package in _KINDS.items()}
    if args.name is None:
        for kind, names in known.items():
            print(f"{kind}:")
            for name, words in names.items():
                if words:
                    print(f"  {name:16} {words.partition(': ')[2] or words}")
        return
    if not any(args.name in names for names in known.values()):
        listed = [name for names in known.values() for name, words in names.items() if words]
        raise unknown_choice("method", args.name, listed)
    from sfp.methods import METHODS, Method
    from sfp.outliers import DETECTORS
    from sfp.refiners import REFINERS

    for kind, registry in zip(known, (METHODS, DETECTORS, REFINERS), strict=True):
        if args.name in known[kind]:
            print(f"{args.name}, one of the {kind}\n")
            print(inspect.getdoc(registry.get(args.name)))
            options = registry.options(args.name)
            shared = {field.name for field in fields(Method)} if kind == "methods" else set()
            if options.keys() - shared:
                print("\noptions and their defaults:")
            for option in (name for name in options if name not in shared):
                print(f"  {option}={options[option]!r}")
            if shared:
                print(
                    "\noptions of every method, see help(sfp.methods.Method); None: as published:"
                )
            for option in (name for name in options if name in shared):
                print(f"  {option}={options[option]!r}")
