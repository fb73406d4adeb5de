"""`python -m mambaadv2` is the command `mambaadv2`."""

from __future__ import annotations

import sys

from mambaadv2.cli import main

if __name__ == "__main__":
    sys.exit(main())
