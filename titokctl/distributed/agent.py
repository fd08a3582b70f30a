"""torchrun without its report: `python -m titokctl.distributed.agent <arguments of torchrun>`.

What went wrong is told by the launcher from the workers' own words; torchrun's logs and its traceback about a child's
exit code would only stand above that.
"""

import logging
import sys


def main(arguments: list[str]) -> int:
    """Run torchrun; 0 when every worker ended with 0, else 1."""
    logging.disable(logging.CRITICAL)
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
