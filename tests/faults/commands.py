"""A folder with small inputs, every command on it, and what each command makes."""

import hashlib
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import small_generator
import tiny
import trained
from caches import write_cache
from safetensors.numpy import load_file

from titokctl.context import Context
from titokctl.jobs.sample.request import Sample
from titokctl.jobs.tokenize.request import Tokenize

sys.path.append(str(Path(__file__).resolve().parents[1] / "training"))
import stages

RECIPE = small_generator.recipe(codes=16, steps=4, batch=4, every=2, warmup=2, layers=1)
_SAMPLE = "sample --runs-dir runs --device cpu -n 6 -o out"
# Words of each command; what it makes is `out` with or without an ending, or the run `new`.
COMMANDS = {
    "tokenize": "tokenize images -o out.h5 --tokenizer tok.safetensors --views flip",
    "tokenize folder": "tokenize images -o out/ --tokenizer tok.safetensors",
    "train-gen": "train-gen gen.h5 --recipe small.yaml --name new --runs-dir runs",
    "sample npz": _SAMPLE,
    "sample png": f"{_SAMPLE} --format png",
    "sample wds": f"{_SAMPLE} --format wds",
    "decode npz": "decode set/ids.h5 -o out.npz --runs-dir runs --device cpu",
    "decode png": "decode set/ids.h5 -o out --format png --runs-dir runs --device cpu",
    "decode wds": "decode set/ids.h5 -o out --format wds --runs-dir runs --device cpu",
    "export jsonl": "export t.h5 --to jsonl -o out.jsonl",
    "export npy": "export t.h5 --to npy -o out.npy",
    "export safetensors": "export t.h5 --to safetensors -o out.safetensors",
    "export wds": "export t.h5 --to wds -o out",
    "merge": "merge t.h5 t.h5 -o out.h5",
    "convert": "convert tok.safetensors -o out.safetensors",
    "stats": "stats set -o out.npz --features toy --runs-dir runs",
    "fid": "fid set --ref ref.npz --features toy --runs-dir runs",
    "reconstruct": "reconstruct images --tokenizer tok.safetensors -o out --features none",
    "shard": "shard images -o out --per-shard 4",
    "preview": "preview t.h5 -o out.png --tokenizer tok.safetensors --source images",
    "report": "report gen -o out.html --runs-dir runs",
    "verify": "verify t.h5 --source recorded --sample 2 --tokenizer tok.safetensors",
    "inspect": "inspect t.h5",
    "diff": "diff t.h5 t.h5",
    "neighbors": "neighbors t.h5",
    "runs": "runs ls --runs-dir runs",
}
# Commands that write nothing, or answer and keep the answer beside.
READING = ("verify", "inspect", "diff", "neighbors", "runs")
_TRAIN = "train-tokenizer images --runs-dir runs --name new --device cpu --set training.steps=6 --recipe "
# The stages of training a tokenizer; stage proxy starts from a VQGAN, stage decoder from a run of stage proxy.
TRAINING = {
    "train vqgan": f"{_TRAIN}small-vqgan.yaml",
    "train proxy": f"{_TRAIN}small-proxy.yaml --proxy runs/proxy/vqgan",
    "train decoder": f"{_TRAIN}small-decoder.yaml --init runs/tokenizer/proxy",
    "train single": f"{_TRAIN}small-single.yaml",
    "train gaussian": f"{_TRAIN}small-gaussian.yaml",
}
_SHARDS = "tokenize tars -o out.h5 --tokenizer tok.safetensors"
# Commands whose work two processes share.
SHARED = {
    "tokenize 2 processes": f"{_SHARDS} --procs 2",
    "sample 2 processes": f"{_SAMPLE} --procs 2".replace("--device cpu ", ""),
    "train-gen 2 processes": "train-gen gen.h5 --recipe small.yaml --name new --runs-dir runs --procs 2",
}
# Jobs that divide the work among them; the last one to finish merges.
JOBS = [f"{_SHARDS} --part {part}/2" for part in range(2)]
_NEW_RUNS = tuple(f"runs/{kind}/new/" for kind in ("generator", "tokenizer", "proxy"))
# Fields that say when and where something was made, and how quickly.
_TIMES = {
    "created",
    "finished",
    "launches",
    "seconds",
    "images_per_second",
    "images_per_s",
    "images_per_s_per_device",
    "elapsed_s",
    "time",
    "step_ms",
}


@dataclass(frozen=True)
class Place:
    """The inputs, from which each run of a command gets its own copy."""

    root: Path

    def words(self, name: str) -> list[str]:
        """Return the words of the command `name`."""
        return (COMMANDS | TRAINING | SHARED)[name].split()

    def copy(self, target: Path) -> Path:
        """Return a fresh copy of the inputs."""
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.root, target)
        return target


def inputs(root: Path) -> Place:
    """Make the inputs."""
    root.mkdir(parents=True)
    runs = trained.both(root / "runs")
    tiny.tokenizer(root / "tok.safetensors")
    tiny.class_folder(root / "images", per_class=3)
    tiny.shards(root / "tars", 6, 2)
    Tokenize([Path("images")], root / "t.h5", str(root / "tok.safetensors"))  # its paths are those of the copy
    write_cache(root / "gen.h5", 12)
    (root / "small.yaml").write_text(RECIPE)
    for stage in stages.NAMES:
        stages.write_recipe(root, stage)
    for stage, name in (("vqgan", "vqgan"), ("proxy", "proxy")):
        stages.train(root / "images", stage, runs, root, "training.steps=1", name=name)
    context = Context(runs)
    Sample(num_images=6, output=root / "set", image_format="npz").run(context)
    shutil.rmtree(runs / "samples")
    rng = np.random.default_rng(0)
    np.savez(root / "ref.npz", arr_0=rng.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8))
    return Place(root)


def made(place: Path, name: str) -> dict[str, str]:
    """Return the SHA-256 of each file that a command made in `place`, without the times in it."""
    found = {}
    for path in sorted(place.rglob("*")):
        where = path.relative_to(place).as_posix()
        is_product = where.startswith(("out", *_NEW_RUNS)) or "evaluation" in where
        # The index of a shard is kept where that is possible, and holds the shard's time. A run that was stopped has a
        # checkpoint of its last step, too.
        is_by_the_way = (
            path.name == ".lock"
            or path.name.endswith(".settings.json")
            or ".titokctl-index" in where
            or "/checkpoints/" in where
        )
        if path.is_file() and is_product and not is_by_the_way:
            found[where] = hashlib.sha256(_lasting(path)).hexdigest()
    return found


def _lasting(path: Path) -> bytes:
    """Return what is the same in each run of a command."""
    if path.suffix == ".jsonl" and path.name == "metrics.jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return json.dumps([(line.get("step"), line.get("loss")) for line in lines if "loss" in line]).encode()
    if path.suffix == ".json":
        return json.dumps(_without_times(json.loads(path.read_text())), sort_keys=True).encode()
    if path.name.startswith("unit-"):  # the order of its metadata is by chance
        tensors = load_file(path)
        return b"".join(name.encode() + tensors[name].tobytes() for name in sorted(tensors))
    if path.suffix == ".html":
        return b""
    return path.read_bytes()


def _without_times(value: object) -> object:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k not in _TIMES and k not in ("files", "checksum")}
    return [_without_times(one) for one in value] if isinstance(value, list) else value
