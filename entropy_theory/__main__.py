"""``python -m entropy_theory`` is the command line."""

import sys

from entropy_theory.cli import main

sys.exit(main())
