"""`titokctl` and `python -m titokctl`."""

import sys


def main() -> None:
    """Run the command line and leave with its exit code."""
    try:
        from titokctl.cli.app import run

        code = run()
    except KeyboardInterrupt:  # in the first moments, before `run` looks after it
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
