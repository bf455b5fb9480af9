"""`python -m retnet`."""

import sys

from retnet.cli import main

if __name__ == "__main__":
    sys.exit(main())
