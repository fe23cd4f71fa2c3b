"""``sfp verify``."""

import sys

from sfp.commands.verify import main

if __name__ == "__main__":
    sys.exit(main())
