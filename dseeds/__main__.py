"""The command line as ``python -m dseeds``."""

import sys

from dseeds.cli import main

if __name__ == "__main__":
    sys.exit(main())
