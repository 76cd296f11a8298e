"""`python -m tuneline.cli`."""

import sys

from tuneline.cli import main

if __name__ == "__main__":
    sys.exit(main())
