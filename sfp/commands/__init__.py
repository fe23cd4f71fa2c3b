"""What people type: ``sfp COMMAND``, one file a command.

A command's module has the command's words as its docstring and a function ``main`` that takes the
arguments and returns the exit code. It imports nothing slow before it knows that there is work to
do, so that its help, a mistake and what is done already are answered at once.
"""

COMMANDS = (
    "segment",
    "evaluate",
    "benchmark",
    "inspect",
    "page",
    "prepare",
    "check",
    "verify",
    "methods",
    "models",
    "cache",
)
