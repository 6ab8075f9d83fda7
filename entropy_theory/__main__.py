"""``python -m entropy_theory`` is the command line."""

import sys

from entropy_theory.cli import main

if __name__ == "__main__":  # not in the processes that it starts
    sys.exit(main())
