"""`python -m megaselect` is `megaselect`."""

import sys

from megaselect.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
