"""`titokctl` and `python -m titokctl`."""

import sys


def main() -> None:
    """Run the command line and leave with its exit code."""
    from titokctl.cli.app import run

    sys.exit(run())


if __name__ == "__main__":
    main()
