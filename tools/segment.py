"""``sfp segment``."""

import sys

from sfp.commands.segment import main

if __name__ == "__main__":
    sys.exit(main())
