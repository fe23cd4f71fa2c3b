"""``sfp cache``."""

import sys

from sfp.commands.cache import main

if __name__ == "__main__":
    sys.exit(main())
