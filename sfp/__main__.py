"""The command ``sfp``, also ``python -m sfp``: see ``sfp.commands``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import sfp
from sfp.commands import COMMANDS
from sfp.errors import unknown_choice


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code, 2 where there is no such command."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"sfp-ovss {sfp.__version__}")
        return 0
    command, *rest = arguments
    if command not in COMMANDS:
        print(f"error: {unknown_choice('command', command, COMMANDS)}", file=sys.stderr)
        return 2
    return _module(command).main(rest)


def _module(command: str):
    return importlib.import_module(f"sfp.commands.{command}")


def _help() -> str:
    lines = [
        "usage: sfp COMMAND [arguments]",
        "",
        "Training-free open-vocabulary segmentation with a frozen CLIP.",
        "",
        *(f"  {name:10} {_first_line(name)}" for name in COMMANDS),
        "",
        "sfp COMMAND --help says more; sfp --version which release this is.",
    ]
    return "\n".join(lines)


def _first_line(command: str) -> str:
    """A command's docstring up to its first empty line."""
    return " ".join((_module(command).__doc__ or "").split("\n\n")[0].split())


if __name__ == "__main__":
    sys.exit(main())
