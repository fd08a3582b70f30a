"""The commands that hints and finished commands name work where they are named: each is run after what prints it."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import documented
import h5py
import numpy as np
import pytest
from command_line import RunCli
from test_documented_pages import SHORT, chain, in_folder
from test_hints import SHOWN, VALUE


@dataclass(frozen=True)
class Case:
    """A command, and a command that it names: in a hint when it fails, or as the next one when it is finished.

    Args:
        words: of the command.
        named: the command that is named, as it stands in the source, with 1 for what is filled in.
        code: of the exit of the first command.
        then: of the exit of the second one.
    """

    words: str
    named: str
    code: int = 0
    then: int = 0


CASES = (
    Case("scenes -o scenes/ -n 40 --heldout 20", "titokctl train-tokenizer 1 1"),
    Case("shard pictures/ -o shards/", "titokctl train-tokenizer 1"),
    Case(f"train-tokenizer pictures/ --recipe tiny --val heldout/ {SHORT} --set codebook.continuous_steps=0",
         "titokctl reconstruct 1 --tokenizer 1"),
    Case("reconstruct heldout/ --tokenizer scenes-64", "titokctl tokenize 1 1 -o tokens.h5"),
    Case("tokenize pictures/ -o fresh.h5 --tokenizer scenes-64", "titokctl train-gen 1"),
    Case("merge tokens.h5 tokens.h5 -o both.h5", "titokctl train-gen 1"),
    Case(f"train-gen tokens.h5 --recipe tiny --name second {SHORT}", "titokctl sample --generator 1 -n 16"),
    Case("sample -n 8 --seed 5", "titokctl fid 1"),
    Case("decode tokens.h5 -o out.npz", "titokctl fid 1"),
    Case("decode runs/samples/drawn/ids.h5 -o out.npz", "titokctl fid 1"),
    Case("stats heldout/ --size 64 -o ref.npz --features lite0", "titokctl fid --ref 1 --features 1"),
    Case("fid --features lite0", "titokctl report 1"),
    Case("report gen -o page.html", "titokctl runs ls"),
    Case("tune --ref heldout/ --features lite0 --images 192 --candidates 2", "titokctl sample --settings 1"),
    Case("train-gen missing.h5", "titokctl tokenize IMAGES -o tokens.h5", 1),
    Case("tokenize pictures/ -o none.h5", "titokctl train-tokenizer DATA --recipe tiny", 1),
    Case("tokenize pictures/ -o none.h5", "titokctl weights ls", 1),
    Case("runs show nothing", "titokctl runs", 1),
    Case("sample --settings missing.yaml", "titokctl recipes ls", 2),
    Case("recipes check list.yaml", "titokctl recipes show NAME", 1),
    Case("runs finish generator/gen", "titokctl convert 1@STEP -o weights.safetensors", 1),
    Case("runs rm generator/gen", "titokctl runs rm 1", 1),
    Case("fid ids.h5 --ref half.npz --features lite0", "titokctl stats DATA -o ref.npz", 1),
    Case(f"train-gen damaged.h5 --recipe tiny {SHORT}", "titokctl verify 1", 1, 1),
    Case("sample -n 0", "titokctl sample --help", 2),
    Case("sample --keep ids.h5 --keep-tokens 0-31", "titokctl decode 1 -o images/ --format png", 2),
    Case("decode empty.jsonl -o out.npz", "titokctl export TOKENS --to jsonl", 1),
)  # fmt: skip
# Command lines of hints that no case runs, with the reason.
NOT_FOLLOWED = {
    "titokctl train-tokenizer DATA --recipe NAME-decoder --init 1":
        "needs a run of stage proxy and its networks; tests/training/test_tokenizer_stages.py trains from one",
    "titokctl pull 1": "needs the Hub; docs/sharing.md, which test_documented_pages.py runs, pushes and pulls",
    "titokctl tokenize IMAGES --tokenizer 1 -o tokens.h5":
        "needs the Hub or a stopped run; docs/sharing.md and tests/training/test_runs_removed.py make such tokenizers",
}  # fmt: skip
# What stands for a name in a hint.
FILLED = {
    "IMAGES": "pictures/ --tokenizer scenes-64",
    "-o tokens.h5": "-o new.h5",
    "--to jsonl": "--to jsonl -o new.jsonl",
    "TOKENS": "tokens.h5",
    "stats DATA": "stats pictures/ --size 64",
    "DATA": "pictures/",
    "@STEP": "@2",
    "recipes show NAME": "recipes show tokenizer/tiny",
}


def test_every_command_line_of_a_hint_is_followed_or_is_listed():
    """The name of a command alone is no command line."""
    whole = {line for _, line in SHOWN if documented.has_arguments(line)}
    followed = {case.named for case in CASES}
    assert whole - followed == set(NOT_FOLLOWED)
    assert followed <= {line for _, line in SHOWN}, "the source no longer names it"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what the cases start from; the first case makes it."""
    return tmp_path_factory.mktemp("chain")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=[f"{case.words} | {case.named}" for case in CASES])
def test_a_command_works_where_it_is_named(case: Case, kept: Path, run_cli: RunCli, tmp_path: Path) -> None:
    if not any(kept.iterdir()):
        chain(kept, in_folder(kept, run_cli))
        damaged(kept)
        next(kept.glob("runs/samples/*")).rename(kept / "runs" / "samples" / "drawn")
    place = Path(shutil.copytree(kept, tmp_path / "place"))
    run = in_folder(place, run_cli)
    said = run(case.words, code=case.code).stderr
    pattern = re.sub(rf"(?<=\\ ){VALUE}(?!\d)", "[^`\n]+?", re.escape(case.named))
    found = re.search(rf"{pattern}(?=[`;,\n]|\.?$)", said.rpartition("hint: " if case.code else "next: ")[2])
    assert found is not None, said
    text = found[0]
    for name, value in FILLED.items():
        text = text.replace(name, value)
    line = documented.as_run(documented.Line("a hint", text, in_block=True))
    run(line.removeprefix("titokctl "), code=case.then)


def damaged(place: Path) -> None:
    """Write a cache with a changed id, incomplete statistics, and files that hold nothing."""
    with h5py.File(shutil.copy(place / "tokens.h5", place / "damaged.h5"), "r+") as file:
        file["tokens"][0, 0] = 1 - min(1, int(file["tokens"][0, 0]))
    np.savez(place / "half.npz", mu=np.zeros(4))
    (place / "empty.jsonl").write_text("")
    (place / "list.yaml").write_text("- a list\n")
