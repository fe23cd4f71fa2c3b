"""``sfp check``."""

import sys

from sfp.commands.check import main

if __name__ == "__main__":
    sys.exit(main())
