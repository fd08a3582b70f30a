"""Damage of a token cache is not copied into a product, and is told by what only looks at the cache."""

from pathlib import Path

import h5py
import pytest
import tiny
import trained
from caches import as_version_1

from titokctl.cli.app import run
from titokctl.context import Context
from titokctl.jobs.tokenize.request import Tokenize


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    (root / "runs").mkdir()
    tiny.tokenizer(root / "runs" / "tok.safetensors")
    tiny.class_folder(root / "images", per_class=3)
    trained.generator_run(root / "runs", {}, num_latent_tokens=tiny.TOKENS, codebook_size=tiny.CODES)
    Tokenize([root / "images"], root / "t.h5", str(root / "runs" / "tok.safetensors")).run(Context(root / "runs"))
    return root


def _row(f: h5py.File) -> None:
    f["tokens"][2, 3] ^= 1


def _view(f: h5py.File) -> None:
    f["views/flip"][5, 0] ^= 1


def _label(f: h5py.File) -> None:
    f["labels"][0] = 1


def _key(f: h5py.File) -> None:
    f["keys"][0] = f["keys"][1]


def _class_name(f: h5py.File) -> None:
    text = f["class_names"][:]
    where = -1 if text.dtype.kind == "S" else 2
    f["class_names"][where] = b"dot" if text.dtype.kind == "S" else ord("b")


CHANGES = {"row": _row, "view": _view, "label": _label, "key": _key, "class name": _class_name}
MAKERS = {
    "merge": "merge BENT BENT -o out.h5",
    "jsonl": "export BENT --to jsonl -o out.jsonl",
    "npy": "export BENT --to npy -o out.npy",
    "safetensors": "export BENT --to safetensors -o out.safetensors",
    "wds": "export BENT --to wds -o out",
    "decode": "decode BENT -o out.npz --tokenizer TOK",
    "preview": "preview BENT -o out.png --tokenizer TOK",
    "stats": "stats BENT -o out.npz --tokenizer TOK --features lite0",
    "train": "train-gen BENT --name out --runs-dir out --dry-run",
    "sample": "sample --generator GEN --tokenizer TOK -n 2 --keep BENT --keep-tokens 0-1 -o out --device cpu",
}
LOOKERS = {"inspect": "inspect BENT", "diff": "diff BENT GOOD", "neighbors": "neighbors BENT"}


def words(line: str, made: Path, bent: Path) -> list[str]:
    places = {"BENT": bent, "GOOD": made / "t.h5", "TOK": made / "runs" / "tok.safetensors"}
    places["GEN"] = made / "runs" / "generator" / "gen"
    return [str(places.get(word, word)) for word in line.split()]


def damaged(made: Path, folder: Path, change: str, version: int) -> Path:
    bent = folder / "bent.h5"
    bent.write_bytes((made / "t.h5").read_bytes())
    if version == 1:
        as_version_1(bent)
    with h5py.File(bent, "r+") as f:
        CHANGES[change](f)
    return bent


# Each maker meets each change, in one of the two versions of the format.
CASES = [(maker, change, 1 + (i + j) % 2) for i, maker in enumerate(MAKERS) for j, change in enumerate(CHANGES)]


@pytest.mark.parametrize(("maker", "change", "version"), CASES)
def test_no_product_is_made_of_a_damaged_cache(
    made: Path, maker: str, change: str, version: int, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bent = damaged(made, tmp_path, change, version)
    assert run(words(MAKERS[maker], made, bent)) == 1
    assert "changed" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["bent.h5"]


@pytest.mark.parametrize("change", ["row", "label", "key"])
@pytest.mark.parametrize("looker", LOOKERS)
def test_damage_is_told_once_by_what_only_looks(made: Path, looker: str, change: str, tmp_path: Path, capsys) -> None:
    bent = damaged(made, tmp_path, change, 2)
    if looker == "diff" and change == "key":
        pytest.skip("other keys are other images")
    assert run(words(LOOKERS[looker], made, bent)) == 0
    assert capsys.readouterr().err.count("is damaged") == 1


@pytest.mark.parametrize("line", [*MAKERS.values(), *LOOKERS.values()])
def test_a_sound_cache_of_either_version_is_taken(made: Path, line: str, tmp_path: Path, capsys, monkeypatch) -> None:
    if "lite0" in line or "train-gen" in line:
        pytest.skip("needs a network, or a recipe for these sizes")
    monkeypatch.chdir(tmp_path)
    for version in (1, 2):
        bent = tmp_path / f"{version}.h5"
        bent.write_bytes((made / "t.h5").read_bytes())
        if version == 1:
            as_version_1(bent)
        output = [f"{version}-{word}" if word.startswith("out") else word for word in words(line, made, bent)]
        assert run(output) == 0
    assert "damaged" not in capsys.readouterr().err
    outputs = sorted(tmp_path.glob("?-out.npy"))
    assert len({path.read_bytes() for path in outputs}) <= 1
