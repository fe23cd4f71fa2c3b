"""``sfp page``."""

import sys

from sfp.commands.page import main

if __name__ == "__main__":
    sys.exit(main())
