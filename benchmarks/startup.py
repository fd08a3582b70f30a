"""Seconds until `titokctl --help` and `titokctl sample --help` have answered, beside bare Python and `import torch`.

python -m benchmarks.startup [--quick] [--json out.json]
"""

import subprocess
import sys

from benchmarks.measuring import Way, compare, parser, report

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "titokctl --help": ["-m", "titokctl", "--help"],
    "titokctl sample --help": ["-m", "titokctl", "sample", "--help"],
    "import torch": ["-c", "import torch"],
}


def main() -> None:
    """Measure and print."""
    given = parser(__doc__).parse_args()
    ways = {name: Way(_runner(words), beside="python -c pass") for name, words in COMMANDS.items()}
    found = compare(ways, "cpu", 2 if given.quick else 15)
    report("startup", given, found)


def _runner(words: list[str]):  # type: ignore[no-untyped-def]
    return lambda: subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
