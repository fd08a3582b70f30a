"""`titokctl` and `python -m titokctl`."""

import os
import sys


def main() -> None:
    """Run the command line and exit with its code."""
    # By default, idle OpenMP threads spin for so long that other work, such as our own decoding, becomes several times
    # slower. A short spin costs a few per cent on an idle machine. OpenMP reads this when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # cuBLAS looks once, at its first product. `training.deterministic` needs this value, which slows nothing down.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        from titokctl.distributed.stop import handle_early_signals

        handle_early_signals()  # before packages are loaded, which takes a second or more on a busy machine
        from titokctl.cli.app import run

        code = run()
    except KeyboardInterrupt:  # before `run` handles it
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
