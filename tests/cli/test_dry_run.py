"""--dry-run checks everything, prints the plan, and writes nothing."""

import contextlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import toy_features
import trained
import typer
import yaml
from caches import write_cache

from titokctl.cli import app as cli
from titokctl.cli.app import run
from titokctl.context import Context
from titokctl.distributed.stop import StopRequest
from titokctl.errors import Stopped, UserError
from titokctl.weights.read import locate

# Outputs, and the commands that write them.
PLANNED = [
    ("t.h5", "tokenize shards -o t.h5 --tokenizer tok.safetensors"),
    ("rendered", "scenes -o rendered -n 8 --heldout 2 --size 16"),
    ("packed", "shard shards -o packed --per-shard 2"),
    ("made", "sample -n 5 -o made --procs 3"),
    ("out.npz", "decode ids.h5 -o out.npz"),
    ("ids.npy", "export ids.h5 --to npy"),
    ("new/both.h5", "merge ids.h5 ids.h5 -o new/both.h5"),
    ("w.safetensors", "convert runs/generator/gen -o w.safetensors"),
    ("preview.png", "preview ids.h5"),
    ("new/p.png", "preview ids.h5 -o new/p.png"),
    ("out.png", "detokenize 1,2,3,4,5,6,7,8 1 2 3 4 5 6 7 8 -o out.png"),
    ("reconstructed", "reconstruct shards --tokenizer tok.safetensors --features none"),
    ("ref.npz", "stats shards --size 32 -o ref.npz --features toy"),
    ("page.html", "report tokenizer/tok -o page.html"),
    ("tuned", "tune --ref many.npz --features toy --images 9000"),
]
# Training: the plan is the recipe.
RECIPES = {"train-gen", "train-tokenizer"}
# It plans only its first step, the samples.
IN_TWO_STEPS = {"reproduce"}
# Their plans are about a repository.
SHARED = {"push", "pull"}
REFUSED = [
    "tokenize nowhere -o t.h5",
    "tokenize shards -o ids.h5 --tokenizer tok.safetensors",
    "shard shards -o runs",
    "sample -n 5 -o shards",
    "sample -n 5 --classes 7",
    "decode text -o out.npz",
    "decode ids.h5 -o out.png",
    "export ids.h5 --to npy --view ten-crop",
    "merge ids.h5 other.h5 -o both.h5",
    "convert text -o w.safetensors",
    "convert runs/generator/gen -o runs --to official",
    "preview ids.h5 -o text",
    "detokenize 1 2 3 -o out.png",
    "reconstruct nowhere --features none",
    "stats shards --size 32 -o ref.h5 --features toy",
    "report tokenizer/tok -o page.txt",
    "tune --features toy",
    "tune --ref nowhere --features toy",
    "tune --ref shards --features toy --images 9000",
    "tune --ref many.npz --features toy --images 90",
    "train-gen ids.h5 --recipe tiny",
    "train-tokenizer nowhere --recipe tiny",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make shards without an index, a tokenizer, a generator, a cache for it, another cache, and a text file."""
    root = tmp_path_factory.mktemp("made")
    trained.generator_run(root / "runs", hashes := trained.tokenizer_run(root / "runs"))
    write_cache(root / "ids.h5", 6, codes=trained.CODES, tokens=trained.TOKENS, **hashes)
    write_cache(root / "other.h5", 6, codes=trained.CODES, tokens=trained.TOKENS)
    tiny.tokenizer(root / "tok.safetensors")
    tiny.shards(root / "shards", 3, 2)  # tokenize writes a part while it computes the next one, so that a third is left
    np.savez(root / "many.npz", np.zeros((48, trained.SIZE, trained.SIZE, 3), np.uint8))
    (root / "text").write_text("hello")
    toy_features.install(root / "elsewhere")
    return root


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of `made` to work in."""
    folder = shutil.copytree(made, tmp_path / "place")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TITOKCTL_RUNS", "runs")
    monkeypatch.syspath_prepend(folder / "elsewhere")
    return folder


def everything(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return the modification time and the bytes of everything in a folder."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted([folder, *folder.rglob("*")])
    }


@pytest.mark.parametrize(("output", "words"), PLANNED)
def test_a_dry_run_writes_nothing_and_prints_the_plan(place, capsys, output, words):
    before = everything(place)
    assert run([*words.split(), "--dry-run", "--json", "--quiet"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["output"], plan["done"], plan["replaces"]) == (output, 0, False)
    assert plan["count"] > 0 or plan["unit"] == "pictures"
    assert plan["free_bytes"] > 0
    assert run([*words.split(), "--dry-run"]) == 0
    assert f"{output}: {plan['count']:,} {plan['unit']}" in capsys.readouterr().out
    assert everything(place) == before


@pytest.mark.parametrize("words", REFUSED)
def test_a_dry_run_gives_the_errors_of_the_command(place, capsys, words):
    before = everything(place)
    code = run([*words.split(), "--dry-run", "--quiet"])
    planned = capsys.readouterr()
    assert everything(place) == before
    assert run([*words.split(), "--quiet"]) == code != 0
    assert planned == capsys.readouterr()
    assert planned.err.startswith("error: ")


@pytest.mark.parametrize(("output", "words"), [each for each in PLANNED if each[1].split()[0] in ("merge", "export")])
def test_the_planned_size_is_about_right(place, capsys, output, words):
    assert run([*words.split(), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert run([*words.split(), "--quiet"]) == 0
    assert plan["num_bytes"] <= Path(output).stat().st_size  # the file also has headers


def test_an_existing_output_is_replaced_only_with_overwrite(place, capsys):
    before = everything(place)
    assert run(["merge", "ids.h5", "ids.h5", "-o", "other.h5", "--dry-run"]) == 1
    assert run(["merge", "ids.h5", "ids.h5", "-o", "other.h5", "--dry-run", "--overwrite"]) == 0
    assert "the existing other.h5" in capsys.readouterr().out
    assert everything(place) == before


class StopWith(StopRequest):
    """A stop request as soon as a file exists."""

    def __init__(self, pattern: str) -> None:
        super().__init__()
        self._pattern = pattern

    @property
    def requested(self) -> bool:
        return any(Path().glob(self._pattern))

    def check(self, saved: str = "") -> None:
        if self.requested:
            raise Stopped(130, saved)


def shard_a_part() -> None:
    from titokctl.context import Context
    from titokctl.jobs.shard import Shard

    Shard(["shards"], Path("packed"), per_shard=2).run(Context(stop=StopWith(".packed*/*.done.json")))


def sample_a_part() -> None:
    from titokctl.jobs.sample.request import Sample

    Sample(num_images=20, output=Path("made")).run(Context(Path("runs"), stop=StopWith("made")))


def decode_a_part() -> None:
    from titokctl.jobs.decode import Decode

    request = Decode(Path("ids.h5"), Path("out.npz"), batch_size=2, precision="float32")
    request.run(Context(Path("runs"), stop=StopWith(".out*")))


def tokenize_a_part() -> None:
    from titokctl.jobs.tokenize.request import Tokenize

    job = Tokenize(["shards"], Path("t.h5"), "tok.safetensors", workers=1)
    job.run(Context(stop=StopWith("t.h5.parts/unit-*")))


@pytest.mark.parametrize(
    ("begin", "words"),
    [
        (shard_a_part, "shard shards -o packed --per-shard 2"),
        (sample_a_part, "sample -n 20 -o made"),
        (decode_a_part, "decode ids.h5 -o out.npz --batch-size 2 --precision float32"),
        (tokenize_a_part, "tokenize shards -o t.h5 --tokenizer tok.safetensors"),
    ],
)
def test_finished_parts_of_an_earlier_run_are_counted(place, capsys, begin, words):
    with contextlib.suppress(Stopped):
        begin()
    before = everything(place)
    assert run([*words.split(), "--dry-run", "--json", "--quiet"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert 0 < plan["done"] < plan["count"]
    assert everything(place) == before


def test_work_begun_with_other_settings_is_refused(place, capsys):
    with contextlib.suppress(Stopped):
        decode_a_part()
    assert run(["decode", "ids.h5", "-o", "out.npz", "--batch-size", "3", "--dry-run"]) == 1
    assert "was begun with other settings" in capsys.readouterr().err
    assert run(["decode", "ids.h5", "-o", "out.npz", "--batch-size", "3", "--dry-run", "--overwrite"]) == 0


def test_nothing_is_downloaded(monkeypatch, tmp_path):
    for name in ("TITOKCTL_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("TITOKCTL_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"titok-l-32 is not on this machine \(a dry run downloads nothing\)"):
        locate("titok-l-32", fetch=False)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(place, capsys):
    place.chmod(0o555)
    try:
        assert run(["export", "ids.h5", "--to", "npy", "--dry-run"]) == 1
        assert "no permission to write ids.npy" in capsys.readouterr().err
    finally:
        place.chmod(0o755)


@pytest.mark.parametrize(
    ("words", "said", "plan"),
    [
        (
            "train-tokenizer shards --recipe tiny --val shards --set training.global_batch_size=20 "
            "--set training.steps=2200",
            "# sees 44,000 images",
            ("epochs", 44_000 / 6),
        ),
        (
            "train-gen ids.h5 --recipe tiny --set model.num_latent_tokens=8 --set model.codebook_size=32",
            "6 images per step each",
            ("images_per_process", 6),
        ),
    ],
)
def test_the_plan_of_training_is_a_recipe(place, capsys, words, said, plan):
    if words.startswith("train-gen"):
        words += " --set training.global_batch_size=6 --set model.num_classes=3 --set val_fraction=0"
    before = everything(place)
    assert run([*words.split(), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert said in shown
    recipe = yaml.safe_load(shown)
    assert run([*words.split(), "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["recipe"] == recipe
    assert told["plan"][plan[0]] == plan[1]
    assert everything(place) == before


def test_every_command_with_an_output_has_a_dry_run():
    cli.register_commands()
    for name, command in typer.main.get_command(cli.app).commands.items():
        names = {word for p in getattr(command, "params", ()) for word in p.opts}
        if {
            "--output",
            "--overwrite",
        } & names and name != "demo":  # each of its steps needs the results of the one before
            assert "--dry-run" in names, name
            assert name in {words.split()[0] for _, words in PLANNED} | RECIPES | IN_TWO_STEPS | SHARED
