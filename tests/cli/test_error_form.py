"""Errors have one form: a sentence that names what was found, and a hint."""

import resource
from pathlib import Path

import pytest
import tiny
import torch
import trained
from caches import write_cache

from titokctl.cli.app import run
from titokctl.errors import UserError
from titokctl.formats import checkpoint
from titokctl.weights.pickled import read_pickled


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a cache, damaged copies of it, a tokenizer run, images, and a recipe that is not YAML."""
    root = tmp_path_factory.mktemp("place")
    whole = write_cache(root / "good.h5", 40).read_bytes()
    (root / "cut.h5").write_bytes(whole[: len(whole) // 2])
    (root / "text.h5").write_text("hello")
    (root / "empty.h5").write_bytes(b"")
    (root / "broken.yaml").write_text("kind: generator\nmodel: [1, 2\n")
    trained.tokenizer_run(root / "runs")
    tiny.class_folder(root / "pictures", per_class=2)
    return root


WRONG_CACHES = [("none.h5", "file not found"), ("text.h5", "is not an HDF5 file"), ("empty.h5", "is empty"),
                ("cut.h5", "truncated: it has"), ("pictures", "not a token cache")]  # fmt: skip


@pytest.mark.parametrize(("name", "said"), WRONG_CACHES)
def test_a_file_that_is_not_a_cache(place: Path, said_by, name: str, said: str) -> None:
    for command in ("train-gen", "verify", "diff"):
        words = [command, name, *(["good.h5"] if command == "diff" else [])]
        assert said in said_by(words, 1)


@pytest.mark.parametrize("name", ["none.h5", "text.h5", "cut.h5"])
def test_inspect_of_a_damaged_cache(said_by, name: str) -> None:
    assert name in said_by(["inspect", name], 1)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("sample -n 0", 2, "-n must be at least 1, not 0"),
        ("sample -n 1e3", 2, "a whole number is expected"),
        ("tokenize pictures -o t.h5 --batch-size 0", 2, "should be greater than or equal to 1"),
        ("sample --generator runs/tokenizer/tok", 1, "contains a tokenizer, but a generator is expected"),
        ("recipes check broken.yaml", 1, "is not valid YAML: line 3"),
        ("train-gen good.h5 --recipe broken.yaml", 2, "is not valid YAML: line 3"),
        ("tokenize missing -o t.h5", 1, "no such file or folder: missing"),
        ("tokenize pictures -o t.h5 --device gpu", 2, "unknown device 'gpu'"),
        ("train-gen good.h5 --device cuda:x", 2, "unknown device 'cuda:x'"),
        ("tokenize pictures missing -o t.h5 --procs 2", 1, "no such file or folder: missing"),
    ],
)  # fmt: skip
def test_a_wrong_argument(said_by, words: str, code: int, said: str) -> None:
    assert said in said_by(words.split(), code)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize(
    "words",
    ["tokenize pictures -o t.h5", "train-gen good.h5", "sample", "train-tokenizer pictures --recipe tiny",
     "reconstruct pictures", "fid", "verify good.h5 --source recorded --sample 2", "preview good.h5 -o p.png"],
)  # fmt: skip
def test_a_missing_gpu(said_by, words: str) -> None:
    assert "no CUDA device found on this machine" in said_by([*words.split(), "--device", "cuda"], 2)


@pytest.mark.parametrize("data", [b"i" * 50, b"hello", b"\x80\x02}q\x00(X", b"PK\x03\x04" + bytes(50), b"\x80\x04\x95"])
def test_a_damaged_pickle_gives_a_readable_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "old.bin").write_bytes(data)
    with pytest.raises(UserError) as caught:
        read_pickled(tmp_path / "old.bin")
    assert caught.value.hint
    reason = caught.value.message.rpartition("(")[2].rstrip(")")
    assert " " in reason, caught.value.message


def test_a_limit_on_file_sizes_is_not_a_full_disk(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    state = checkpoint.Checkpoint(1, {"a": torch.zeros(100_000)}, {})
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(UserError, match="exceeds the maximum size of a file") as caught:
            checkpoint.save(tmp_path / "checkpoints", state, checkpoint.Policy(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "ulimit -f" in caught.value.hint
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.fixture
def said_by(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Run a command that must fail, check the form of its error, and return it."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("TITOKCTL_RUNS", "runs")

    def call(words: list[str], code: int) -> str:
        assert run(words) == code
        out, said = capsys.readouterr()
        assert out == ""
        assert said.count("error: ") == 1
        assert "\nhint: " in said
        assert "unexpected" not in said
        return said

    return call
