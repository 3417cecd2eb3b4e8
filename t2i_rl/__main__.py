"""`python -m t2i_rl`, as torchrun starts it: the command `t2i-rl`."""

import sys

from t2i_rl.cli import main

if __name__ == "__main__":
    sys.exit(main())
