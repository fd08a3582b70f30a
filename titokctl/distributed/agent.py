"""torchrun without its report: `python -m titokctl.distributed.agent <arguments of torchrun>`.

The launcher reports the workers' own errors, which torchrun's logs and its traceback about a child's exit code would
hide.
"""

import json
import logging
import os
import sys
from pathlib import Path

from titokctl.distributed.worker import EXIT_CODES, FAILED, FOLDER, leave_with_launcher


def main(arguments: list[str]) -> int:
    """Run torchrun. Returns 0 if every worker exited with 0, otherwise 1."""
    logging.disable(logging.CRITICAL)
    if folder := os.environ.get(FOLDER):
        leave_with_launcher(Path(folder))  # while it waits for other machines it has no worker that would end it
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun(arguments)
    except ChildFailedError as error:
        if folder:
            codes = {found.local_rank: found.exitcode for found in error.failures.values()}
            (Path(folder) / EXIT_CODES).write_text(json.dumps(codes))
        return 1
    except SignalException:
        return 1
    except Exception as error:
        if not folder:
            raise
        (Path(folder) / FAILED).write_text(" ".join(f"{type(error).__name__}: {error}".split()))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
