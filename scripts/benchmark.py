"""The benchmark's commands: python scripts/benchmark.py --help, and `scripts/benchmark/`."""

import sys

from benchmark.commands import main

if __name__ == "__main__":
    sys.exit(main())
