"""Commands make of compressed shards what they make of the plain ones."""

import gzip
import json
from pathlib import Path

import pytest
import tiny
from command_line import RunCli
from image_files import encoded, noise
from tar_files import tar_bytes, write_tar

from titokctl.cli.app import run
from titokctl.formats.token_cache import TokenCache

COUNT = 12


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards in `plain` and, compressed, in `packed`; one of the images is unreadable."""
    root = tmp_path_factory.mktemp("compressed")
    tiny.tokenizer(root / "tokenizer.safetensors")
    for shard in range(2):
        numbers = range(shard * COUNT, shard * COUNT + COUNT)
        members = [(f"{i:04d}.png", encoded(noise(tiny.SIZE, tiny.SIZE, seed=i))) for i in numbers]
        members += [(f"{i:04d}.cls", str(i % 3).encode()) for i in numbers] + [(f"{shard}.txt", b"a caption")]
        write_tar(root / f"plain/s-{shard}.tar", members)
        path = root / f"packed/s-{shard}.tar.gz"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(tar_bytes(members)))
    broken = [("broken.png", b"\x89PNG\r\n\x1a\n and no more")]
    write_tar(root / "plain/s-2.tar", [*broken, ("x.png", encoded(noise(tiny.SIZE, tiny.SIZE)))])
    (root / "packed/s-2.tgz").write_bytes(gzip.compress((root / "plain/s-2.tar").read_bytes()))
    return root


def tokenize(root: Path, name: str, output: Path, *more: str) -> None:
    tokenizer = root / "tokenizer.safetensors"
    words = ["tokenize", str(root / name), "-o", str(output), "--tokenizer", str(tokenizer), *more]
    assert run([*words, "--max-rejected", "0.5", "--views", "flip", "--quiet"]) == 0


def facts(path: Path) -> dict[str, object]:
    cache = TokenCache.open_whole(path)
    rejected = [json.loads(line) for line in path.with_name(f"{path.name}.rejected.jsonl").read_text().splitlines()]
    rejected = [one | {"unit": ""} for one in rejected]  # which names the shard as it is called
    return {
        "contents": cache.sha256,
        "labels": cache.labels.tolist(),
        "keys": list(cache.keys[0 : len(cache)]),
        "rejected": rejected,
        "passed_over": cache.header.source["passed_over"],
    }


@pytest.fixture(scope="module")
def expected(root: Path) -> dict[str, object]:
    tokenize(root, "plain", root / "plain.h5")
    return facts(root / "plain.h5")


def test_tokenize_gives_the_same_cache_and_verify_finds_its_source(root: Path, expected: dict[str, object]) -> None:
    tokenize(root, "packed", root / "packed.h5")
    assert facts(root / "packed.h5") == expected
    assert len(expected["labels"]) == 2 * COUNT + 1  # type: ignore[arg-type]
    for source in ("recorded", str(root / "packed")):
        assert run(["verify", str(root / "packed.h5"), "--source", source]) == 0
    assert run(["verify", str(root / "packed.h5"), "--source", str(root / "plain")]) == 1


def test_parts_give_the_same_cache(root: Path, expected: dict[str, object], tmp_path: Path) -> None:
    tokenize(root, "packed", tmp_path / "t.h5", "--part", "0/2")
    tokenize(root, "packed", tmp_path / "t.h5", "--part", "1/2")
    assert facts(tmp_path / "t.h5") == expected


@pytest.mark.slow
def test_processes_that_unpack_at_once_give_the_same_cache(
    root: Path, expected: dict[str, object], tmp_path: Path, run_cli: RunCli
) -> None:
    source = tmp_path / "packed"
    source.mkdir()
    for path in (root / "packed").glob("*z"):
        (source / path.name).write_bytes(path.read_bytes())
    tokenizer = ("--tokenizer", root / "tokenizer.safetensors", "--max-rejected", "0.5", "--views", "flip")
    told = run_cli("tokenize", source, "-o", tmp_path / "t.h5", *tokenizer, "--procs", 3, code=0)
    assert facts(tmp_path / "t.h5") == expected
    assert told.stderr.count("unpacking 3 compressed shards") == 1


def test_other_commands_read_them(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed, plain = (str(root / name) for name in ("packed/s-0.tar.gz", "plain/s-0.tar"))
    tokenizer = ["--tokenizer", str(root / "tokenizer.safetensors")]

    def printed(*words: object) -> dict[str, object]:
        capsys.readouterr()
        assert run([*map(str, words), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    shards = []
    for name, given in (("a", packed), ("b", plain)):
        printed("shard", given, "-o", tmp_path / name / "out")
        shards.append((tmp_path / name / "out/shard-000000.tar").read_bytes())
    assert shards[0] == shards[1]
    more = (*tokenizer, "--features", "none", "--no-lpips")
    psnr = [
        printed("reconstruct", given, "-o", tmp_path / f"r-{name}", *more)["psnr_mean"]
        for name, given in (("a", packed), ("b", plain))
    ]
    assert psnr[0] == psnr[1]
    one, two = printed("inspect", packed), printed("inspect", plain)
    assert one["facts"]["images"] == two["facts"]["images"] == COUNT  # type: ignore[index]
    plan = printed("train-tokenizer", packed, "--recipe", "tiny", "--runs-dir", tmp_path / "runs", "--dry-run")
    assert str(COUNT) in json.dumps(plan)


@pytest.mark.parametrize("output", [".", "..", "folder/.."])
def test_scenes_want_a_folder_with_a_name(tmp_path: Path, run_cli: RunCli, output: str) -> None:
    told = run_cli("scenes", "-o", output, "-n", 1, code=1)
    assert "can't be the name of a new file or folder" in told.stderr
    assert list(tmp_path.iterdir()) == []
