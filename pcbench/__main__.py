"""`python -m pcbench`."""

import sys

from .cli import main

if __name__ == "__main__":  # launchers import this module in their workers
    sys.exit(main())
