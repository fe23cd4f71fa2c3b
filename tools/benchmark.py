"""``sfp benchmark``."""

import sys

from sfp.commands.benchmark import main

if __name__ == "__main__":
    sys.exit(main())
