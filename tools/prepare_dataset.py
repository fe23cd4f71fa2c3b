"""``sfp prepare``."""

import sys

from sfp.commands.prepare import main

if __name__ == "__main__":
    sys.exit(main())
