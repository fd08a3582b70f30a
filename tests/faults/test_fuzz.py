"""Damaged and planted files for every reader: a sentence or the same contents, in bounded time and memory.

Each reader gets the same number of mutations of a good file: bytes changed, zeroed, cut out, doubled or replaced by
those of another place, and, of JSON, values of other types and sizes. They follow from the seed; TITOKCTL_MUTATIONS
changes how many, and TITOKCTL_SEED which.
"""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import commands
import pytest
from caches import as_version_1
from campaign import Server

SEED, MUTATIONS = (int(os.environ.get(f"TITOKCTL_{name}", n)) for name, n in (("SEED", 21), ("MUTATIONS", 300)))
CPU_S, PEAK_KB = 30, 2 << 20
STRANGE = (
    None, True, -1, 0, 1, 1e308, 10**30, float("nan"), "", "x" * 100_000, "\ud800", "\x1b[31m", "../..", "/", [], {},
    [[]], {"a": 1}, ["plain"] * 10_000, [None] * 3, "plain", "1", 1 << 40,
)  # fmt: skip
pytestmark = pytest.mark.slow

# Each reader: the file or folder that is damaged, and the words that read it.
READERS = {
    "cache": ("t.h5", "verify t.h5"),
    "cache of version 1": ("old.h5", "verify old.h5"),
    "cache merged": ("t.h5", "merge t.h5 -o out.h5"),
    "cache exported": ("t.h5", "export t.h5 --to safetensors -o out.safetensors"),
    "cache trained on": ("gen.h5", "train-gen gen.h5 --recipe small.yaml --dry-run --runs-dir runs"),
    "header": ("header", "verify t.h5"),
    "header merged": ("header", "merge t.h5 t.h5 -o out.h5"),
    "weights": ("tok.safetensors", "convert tok.safetensors -o out.safetensors"),
    "checkpoint": ("runs/generator/new/checkpoints", "train-gen gen.h5 --recipe small.yaml --name new --runs-dir runs"),
    "recipe": ("small.yaml", "recipes check small.yaml"),
    "manifest of parts": ("parts/manifest.json", "verify parts"),
    "part": ("parts/unit-00000000.safetensors", "verify parts"),
    "manifest of samples": ("set/manifest.json", "inspect set"),
    "images": ("set/images.npz", "fid set/images.npz --ref ref.npz --features toy --runs-dir runs"),
    "statistics": ("stats.npz", "fid set --ref stats.npz --features toy --runs-dir runs"),
    "run": ("runs/generator/gen/run.json", "runs ls --runs-dir runs"),
    "run shown": ("runs/generator/gen/run.json", "runs show gen --runs-dir runs"),
    "metrics": ("runs/generator/new/metrics.jsonl", "report new -o out.html --runs-dir runs"),
    "evaluation": ("set/evaluation-toy.json", "compare set set2 --features toy --runs-dir runs"),
    "tar": ("shards/shard-000000.tar", "inspect shards"),
    "index of shards": ("shards/index.json", "inspect shards"),
    "parquet": ("table/train.parquet", "tokenize table -o out.h5 --tokenizer tok.safetensors --device cpu"),
    "parquet listed": ("table/train.parquet", "tokenize table -o out.h5 --tokenizer tok.safetensors --dry-run"),
    "kept index": ("shards/.titokctl-index/shard-000000.tar.npz", "inspect shards"),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = Server(tmp_path_factory.mktemp("fuzz"), None)
    yield found
    found.close()


@pytest.fixture(scope="module")
def place(server: Server) -> commands.Place:
    made = commands.inputs(server.root / "inputs")
    work = made.copy(server.root / "work")
    for words in (
        "tokenize images -o t.h5 --tokenizer tok.safetensors",
        "tokenize images -o parts/ --tokenizer tok.safetensors",
        "tokenize images -o old.h5 --tokenizer tok.safetensors",
        commands.COMMANDS["train-gen"],
        "stats set -o stats.npz --features toy --runs-dir runs",
        commands.COMMANDS["fid"],
        "shard images -o shards --per-shard 4",
    ):
        done = server.run(work, words.split())
        assert done["code"] == 0, done["stderr"]
    as_version_1(work / "old.h5")
    write_parquet(work / "table", sorted((work / "images").rglob("*.jpg")))
    shutil.copytree(work / "set", work / "set2")
    shutil.rmtree(made.root)
    shutil.copytree(work, made.root)
    return made


def write_parquet(folder: Path, images: list[Path]) -> None:
    """Write a data set as the Hub does: images with their names, labels, and the names of the classes."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder.mkdir()
    rows = [{"bytes": path.read_bytes(), "path": path.name} for path in images]
    image = pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    table = pa.table({"image": image, "label": pa.array([i % 3 for i in range(len(rows))], pa.int64())})
    features = {"image": {"_type": "Image"}, "label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}
    names = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(names), folder / "train.parquet", row_group_size=4)


def changed_bytes(data: bytes, draw: random.Random) -> bytes:
    """Return a mutation of any file."""
    out, kind = bytearray(data), draw.randrange(7)
    at, size = draw.randrange(len(out) or 1), draw.choice((1, 1, 2, 8, 64, 512))
    if kind == 0 and out:
        out[at] ^= 1 << draw.randrange(8)
    elif kind == 1:
        out[at : at + size] = bytes(len(out[at : at + size]))
    elif kind == 2:
        out[at : at + size] = b"\xff" * len(out[at : at + size])
    elif kind == 3:
        del out[at : at + size]
    elif kind == 4:
        del out[at:]
    elif kind == 5:
        out[at:at] = out[at : at + size]
    else:
        other = draw.randrange(len(out) or 1)
        out[at : at + size] = out[other : other + size]
    return bytes(out)


def changed_json(value: object, draw: random.Random) -> object:
    """Return a JSON value in which one value, name or item is another."""
    if isinstance(value, dict) and value and draw.random() < 0.8:
        name = draw.choice(sorted(value))
        kind = draw.randrange(5)
        rest = {k: v for k, v in value.items() if k != name}
        if kind == 0:
            return rest
        if kind == 1:
            return rest | {draw.choice(("plain", "", "x" * 300, "\ud800", "format", name.upper())): value[name]}
        return rest | {name: changed_json(value[name], draw) if kind < 4 else draw.choice(STRANGE)}
    if isinstance(value, list) and value and draw.random() < 0.8:
        at = draw.randrange(len(value))
        return [*value[:at], changed_json(value[at], draw), *value[at + (draw.random() < 0.8) :]]
    return draw.choice(STRANGE)


def with_changed_header(path: Path, draw: random.Random) -> None:
    """Change the header of a cache, and write a checksum that fits: a planted file."""
    import hashlib

    import h5py
    import numpy as np

    with h5py.File(path, "r+") as f:
        name = draw.choice(("header", "header", "header", "class_names"))
        text = json.dumps(changed_json(json.loads(f[name][:].tobytes()), draw))
        del f[name]
        f[name] = np.frombuffer(text.encode(), np.uint8)
        f["checksums"].attrs["header_sha256"] = np.bytes_(hashlib.sha256(f["header"][:].tobytes()).hexdigest())


def mutate(work: Path, target: str, draw: random.Random) -> None:
    """Damage one file."""
    if target == "header":
        with_changed_header(work / "t.h5", draw)
        return
    path = work / target
    if path.is_dir():
        path = draw.choice(sorted(p for p in path.rglob("*") if p.is_file()))
    change: Callable[[bytes], bytes] = lambda data: changed_bytes(data, draw)  # noqa: E731
    if path.suffix == ".json" and draw.random() < 0.7:
        change = lambda data: json.dumps(changed_json(json.loads(data), draw)).encode()  # noqa: E731
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_refused_or_harmless(server: Server, place: commands.Place, name: str) -> None:
    target, words = READERS[name]
    work, problems = server.root / "work", []
    draw = random.Random(f"{SEED} {name}")
    place.copy(work)
    original = work / (target if target != "header" else "t.h5")
    kept = server.root / "kept"
    if kept.exists():
        shutil.rmtree(kept) if kept.is_dir() else kept.unlink()
    (shutil.copytree if original.is_dir() else shutil.copy)(original, kept)
    for number in range(MUTATIONS):
        mutate(work, target, draw)
        done = server.run(work, words.split(), cpu_s=CPU_S, seconds=4 * CPU_S)
        said = done["stderr"]
        if done["code"] not in (0, 1, 2) or "Traceback" in said or "unexpected " in said:
            problems.append(f"{name} {number}: code {done['code']}: {said.strip()[-300:]}")
        elif done["peak_kb"] > PEAK_KB:
            problems.append(f"{name} {number}: {done['peak_kb'] >> 10} MiB")
        elif "\x1b" in said:
            problems.append(f"{name} {number}: an escape code reached the terminal")
        for path in work.glob("out*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if name == "checkpoint":
            place.copy(work)
        shutil.rmtree(original) if original.is_dir() else original.unlink()
        (shutil.copytree if kept.is_dir() else shutil.copy)(kept, original)
    assert not problems, "\n".join(problems[:20])
