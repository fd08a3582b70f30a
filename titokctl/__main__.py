"""`titokctl` and `python -m titokctl`."""

import os
import sys


def main() -> None:
    """Run the command line and leave with its exit code."""
    # Idle OpenMP threads spin for so long by default that work slows down several times as soon as anything else wants
    # a core, decoding of our own included; a short spin costs a few per cent on a quiet machine. Read when torch loads.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        from titokctl.cli.app import run

        code = run()
    except KeyboardInterrupt:  # in the first moments, before `run` looks after it
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
