"""Run the four commands on rendered scenes and draw what the terminal shows as an SVG picture.

    python recipes/bundled/terminal.py -o docs/terminal.svg

The commands run for real, in a temporary folder, with the bundled tokenizer; this takes minutes. A line of progress
replaces the one before it, as on a terminal, and the temporary folder's name is left out of paths. Nothing else is
changed or left out.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 100
PREPARATION = ["scenes", "-o", "scenes", "-n", "3000", "--heldout", "500", "--quiet"]
COMMANDS = [
    ["tokenize", "scenes/train", "-o", "tokens.h5", "--tokenizer", "scenes-64"],
    ["train-gen", "tokens.h5", "--recipe", "tiny", "--name", "mine"],
    ["sample", "--generator", "mine", "--tokenizer", "scenes-64", "--cfg", "1.5", "-n", "500"],
    ["fid", "--ref", "scenes/heldout", "--features", "lite2"],
]
PROGRESS = re.compile(r"^([\w-]+(?: [\w-]+)?): [\d,]+/[\d,]+ ")
# No font is fetched when the picture is opened.
SVG = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">
<style>.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, monospace; font-size: {char_height}px;
line-height: {line_height}px; white-space: pre; }} {styles}</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>{lines}</defs>
<rect width="100%" height="100%" rx="8" fill="#0d1117"/>
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g></g></svg>
"""


def run(words: list[str], folder: Path) -> list[str]:
    """Run a command in the folder; return the lines that it leaves on a terminal. Ends this program if it fails."""
    paths = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
    done = subprocess.run(
        [sys.executable, "-m", "titokctl", *words], cwd=folder, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, env=os.environ | {"PYTHONPATH": paths, "COLUMNS": str(WIDTH)},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stdout)
    lines: list[str] = []
    for line in map(str.rstrip, done.stdout.replace(f"{folder}/", "").splitlines()):
        before, now = (PROGRESS.match(text) for text in (lines[-1] if lines else "", line))
        if before and now and before[1] == now[1]:
            lines.pop()
        if line or (lines and lines[-1]):
            lines.append(line)
    return lines


def main() -> None:
    """Run the commands and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="the .svg file")
    output: Path = parser.parse_args().output
    with tempfile.TemporaryDirectory() as name, Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=WIDTH, file=nowhere, force_terminal=True, highlight=False)
        folder = Path(name).resolve()
        run(PREPARATION, folder)
        for words in COMMANDS:
            console.print(Text(f"$ titokctl {' '.join(words)}", style="bold #7ee787"))
            for line in run(words, folder):
                console.print(Text(line, style="#c9d1d9"))
            console.print()
        output.write_text(console.export_svg(title="", code_format=SVG), encoding="utf-8")
    print(output)


if __name__ == "__main__":
    main()
