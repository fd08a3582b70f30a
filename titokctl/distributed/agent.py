"""torchrun without its report: `python -m titokctl.distributed.agent <arguments of torchrun>`.

What went wrong is told by the launcher from the workers' own words; torchrun's logs and its traceback about a child's
exit code would only stand above that.
"""

import logging
import os
import sys
from pathlib import Path

from titokctl.distributed.worker import FOLDER, leave_with_launcher


def main(arguments: list[str]) -> int:
    """Run torchrun; 0 when every worker ended with 0, else 1."""
    logging.disable(logging.CRITICAL)
    if folder := os.environ.get(FOLDER):
        leave_with_launcher(Path(folder))  # it may wait for other machines, without a worker that would tell it
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun(arguments)
    except (ChildFailedError, SignalException):
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
