"""What the commands make of small inputs, as hashes: two checkouts that agree in all of them write the same bytes.

    python tests/fingerprints.py --root OLD > old.json
    python tests/fingerprints.py --root NEW > new.json
    diff old.json new.json

Both on one machine, with the same --python: other kernels and other releases of a package give other numbers. This
script knows the command line and docs/formats.md alone, so that it runs unchanged however the modules are arranged. It
prints one JSON object, what was hashed -> SHA-256: `folder.h5:/tokens` is a dataset (or array, or all tensors) in a
file, `:@` its metadata, `stdout: NAME` what a command said with --json. Times, versions and what follows from them are
left out, as is the place of the folder in which everything is made; `--keep FOLDER` keeps it, to look at what differs.
"""

import argparse
import hashlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

TIMES = {
    "created",
    "finished",
    "seconds",
    "images_per_second",
    "images_per_s",
    "images_per_s_per_device",
    "launches",
    "data_wait",
    "memory_gb",
    "mtime_ns",
}
VERSIONS = {"versions", "created_by", "created by", "torch", "pillow", "libjpeg", "libwebp", "libtiff", "libavif"}
LEFT_OUT = TIMES | VERSIONS | {"key", "metadata_sha256"}  # the last two: hashes that see versions or paths
IN_NAMES = re.compile(r"(?<=-n\d\d-)[0-9a-f]{8}|[0-9a-f]{32}(?=[.]npz$)")  # such hashes in names of runs and statistics
SIZES = ("steps=10", "global_batch_size=8", "evaluate_every=5", "checkpoint_every=5", "log_every=1")
STEPS = " --set=training.".join(("--device cpu", *SIZES))
CODES, LOSSES = "--set=codebook.continuous_steps=3", "--set=loss.perceptual_start=3 --set=adversary.start=5"
TRAIN = f"train-tokenizer photos {STEPS} --recipe"
TOKENIZE = "tokenize --tokenizer runs/tokenizer/single --device cpu"
SAMPLE = "sample --device cpu --generator runs/generator/gen"
LITE0 = "--features lite0 --device cpu"
DROPOUT = "--set=model.dropout=0.1 --set=training.activation_checkpointing=true"
OTHERWISE = "--cfg-schedule power-cosine --steps 5 --seed 4 --precision float32"
# NAME: COMMAND. Those of a group run at the same time; a group finds what the groups before it made.
COMMANDS = f"""
shard: shard photos -o sharded --per-shard 20
shard-again: shard tars -o resharded --no-shuffle --max-bytes 20000
single: {TRAIN} tiny --name single --val tars {CODES} --set=loss.perceptual_start=3
vae: {TRAIN} tiny-vae --name vae {LOSSES} --set=augmentation.flip=true
vqgan: {TRAIN} tiny-vqgan --name vqgan {CODES} {LOSSES} --set=training.micro_batch_size=4

proxy: {TRAIN} tiny-proxy --name proxy --proxy runs/proxy/vqgan {CODES}
single-procs: train-tokenizer tars --name single-procs --procs 2 {STEPS} {CODES}

decoder: {TRAIN} tiny-decoder --name decoder --val tars --init runs/tokenizer/proxy --proxy runs/proxy/vqgan {LOSSES}
folder: {TOKENIZE} photos -o folder.h5
many: {TOKENIZE} many -o many.h5 --workers 2 --labels many.txt

shards: {TOKENIZE} tars -o shards.h5
procs: {TOKENIZE} tars -o procs.h5 --procs 2
compressed: {TOKENIZE} photos -o compressed.h5 --compress
ten-crop: {TOKENIZE} photos -o ten-crop.h5 --views flip,ten-crop --workers 1
latents: tokenize photos -o latents.h5 --tokenizer runs/tokenizer/vae --device cpu

parts: {TOKENIZE} tars -o parts/
job-1: {TOKENIZE} tars -o jobs.h5 --part 1/2
job-2: {TOKENIZE} tars -o jobs.h5 --part 2/2
adm: {TOKENIZE} photos -o adm.h5 --crop adm --exif --precision bf16 --batch-size 8 --views none
two-stage: tokenize photos -o two-stage.h5 --tokenizer runs/tokenizer/decoder --device cpu

gen: train-gen folder.h5 --name gen --val ten-crop.h5 {STEPS}
gen-vit: train-gen parts --name gen-vit --set=model.architecture=vit {STEPS} {DROPOUT}
stats: stats tars -o ref.npz --size 64 {LITE0}

gen-procs: train-gen folder.h5 --name gen-procs --procs 2 {STEPS}
stats-procs: stats photos -o ref-procs.npz --size 48 --crop adm --skip-bad --procs 2 {LITE0}
sample: {SAMPLE} --cfg 2 -n 24 -o drawn
sample-png: {SAMPLE} --cfg 2 -n 20 -o drawn-png --format png --procs 2
sample-wds: {SAMPLE}-vit --cfg 3 --classes 2,0 --per-class 6 -o drawn-wds --format wds {OTHERWISE}
sample-fid: {SAMPLE} --cfg 0 -n 24 -o drawn-fid --fid ref.npz {LITE0}

fid: fid drawn {LITE0}
fid-images: fid photos --ref tars --size 64 --skip-bad {LITE0}
reconstruct: reconstruct photos -o rec --tokenizer runs/tokenizer/single --skip-bad --no-lpips {LITE0}

fid-again: fid drawn --ref ref.npz --save-features {LITE0}
fid-procs: fid drawn-png --ref photos --skip-bad --procs 2 {LITE0}
decode: decode drawn/ids.h5 -o decoded.npz --device cpu
decode-flip: decode folder.h5 -o decoded --view flip --precision bf16 --device cpu
decode-latents: decode latents.h5 -o decoded-latents --format webp --device cpu
decode-two-stage: decode two-stage.h5 -o decoded-two-stage.npz --device cpu

jsonl: export folder.h5 --to jsonl
npy: export folder.h5 --to npy
safetensors: export folder.h5 --to safetensors
wds: export folder.h5 --to wds
jsonl-flip: export parts --to jsonl --view flip -o flip.jsonl
merge: merge shards.h5 procs.h5 -o merged.h5
merge-parts: merge parts -o unpacked.h5 --compress
convert: convert runs/tokenizer/single -o converted.safetensors
inspect: inspect folder.h5

verify: verify folder.h5 --source recorded --sample 8 --device cpu
diff: diff folder.h5 compressed.h5 --device cpu
preview: preview folder.h5 --source recorded -n 12 --device cpu
neighbors: neighbors shards.h5 folder.h5
compare: compare drawn drawn-fid {LITE0}
"""


def encoded(number: int, kind: str = "JPEG") -> bytes:
    """A file with smooth blobs, of changing size and shape; every fifth JPEG is turned by its EXIF tag."""
    blobs = np.random.default_rng(number).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    image = Image.fromarray(blobs).resize((72 + number % 57, 70 + number % 45), Image.Resampling.BICUBIC)
    exif, out = Image.Exif(), io.BytesIO()
    exif[274] = 6 if number % 5 == 0 else 1
    image.save(out, kind, **({"quality": 90, "exif": exif} if kind == "JPEG" else {}))
    return out.getvalue()


def make_inputs(folder: Path) -> None:
    """`photos` (class folders, one file cut short), `tars` (shards), and `many`: so many that processes decode them."""
    files = {f"many/{i:04d}.jpg": encoded(i % 200) for i in range(1100)}
    files["many.txt"] = "".join(f"{i % 7}\n" for i in range(1100)).encode()
    for i in range(48):
        kind, ending = ("PNG", "png") if i % 4 == 0 else ("JPEG", "jpg")
        files[f"photos/{('ant', 'bee', 'cat')[i // 16]}/{i:02d}.{ending}"] = encoded(i, kind)
    files["photos/bee/cut.jpg"] = encoded(17)[:300]
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "tars").mkdir()
    for s in range(4):
        with tarfile.open(folder / "tars" / f"{s:03d}.tar", "w") as tar:
            for i in range(10 * s, 10 * s + 10):
                for name, data in ((f"{i:05d}.jpg", encoded(i)), (f"{i:05d}.cls", str(i % 3).encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def run(python: str, root: Path, folder: Path, lines: Mapping[str, list[str]]) -> dict[str, str]:
    """Run `python WORD...` for each of `lines` in `folder`, all at the same time; what each said on stdout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TITOKCTL", "PYTHON"))}
    ours = {"PYTHONPATH": str(root), "TITOKCTL_RUNS": "runs", "XDG_CACHE_HOME": str(folder / "cache")}
    environment = kept | ours | {"OMP_NUM_THREADS": "1", "TITOKCTL_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    streams: Any = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE) | {"stdin": subprocess.DEVNULL, "text": True}
    started = {n: subprocess.Popen([python, *w], cwd=folder, env=environment, **streams) for n, w in lines.items()}
    said = {name: process.communicate() for name, process in started.items()}
    for name, process in started.items():
        if process.returncode:
            sys.exit(f"error: exit code {process.returncode} of {shlex.join(lines[name])}\n{''.join(said[name])}")
    return {name: stdout for name, (stdout, _) in said.items()}


def sha256(*parts: bytes | str) -> str:
    """Of the parts, one after the other."""
    return hashlib.sha256(b"".join(p.encode() if isinstance(p, str) else p for p in parts)).hexdigest()


def of_array(array: np.ndarray, *more: object) -> str:
    """Of type, shape, bytes, and what else is to be the same."""
    return sha256(f"{array.dtype.str} {array.shape} {more}", array.tobytes())


def of_json(value: Any, folder: Path) -> str:
    """Of what is the same in every run: without LEFT_OUT, and without the place of `folder`."""

    def plain(value: Any) -> Any:
        if isinstance(value, str):
            is_json = value[:2] in ('{"', '["')
            return plain(json.loads(value)) if is_json else IN_NAMES.sub("*", value.replace(str(folder), "."))
        if isinstance(value, dict):  # a .npz that is named in it tells versions and paths: its hash is left out
            left_out = LEFT_OUT | ({"sha256"} if any(str(one).endswith(".npz") for one in value.values()) else set())
            return {name: plain(one) for name, one in value.items() if name not in left_out}
        return [plain(one) for one in value] if isinstance(value, list) else value

    return sha256(json.dumps(plain(value), sort_keys=True, default=str))


def inside(path: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """(where in the file, hash) of everything in `path`; "" for the whole."""
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            members: dict[str, Any] = {"": file}
            file.visititems(members.__setitem__)
            for name, member in members.items():
                if member.attrs:
                    yield f":/{name}@", of_json(dict(member.attrs), folder)
                if isinstance(member, h5py.Dataset):
                    layout = member.chunks, member.compression, member.shuffle, member.fletcher32
                    yield f":/{name}", of_array(member[()], layout)
    elif path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            for name, array in sorted(arrays.items()):
                text = str(array) if name == "about" else array.tobytes().decode() if name == "header" else ""
                yield f":/{name}", of_json(text, folder) if text else of_array(array)
    elif path.suffix == ".safetensors":
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        yield ":@", of_json(header.pop("__metadata__", {}), folder)
        yield ":/", sha256(json.dumps(header, sort_keys=True), data[start:])
    elif path.suffix in (".json", ".jsonl"):
        text = path.read_text()
        yield "", of_json([json.loads(t) for t in ([text] if path.suffix == ".json" else text.splitlines())], folder)
    else:
        yield "", sha256(path.read_bytes())


def of_files(folder: Path) -> Iterator[tuple[str, str]]:
    """(name, hash) of all that the commands left."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"):
        place = path.relative_to(folder)
        if place.parts[0] not in ("photos", "many", "cache"):  # inputs, and what XDG_CACHE_HOME holds
            name = IN_NAMES.sub("*", place.as_posix())
            yield from ((name + where, found) for where, found in inside(path, folder))


def main() -> None:
    """Make everything, and print the hashes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="the interpreter that runs the commands")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="the checkout")
    parser.add_argument("--keep", type=Path, help="a new folder to work in, which stays")
    given = parser.parse_args()
    root, prints = given.root.resolve(), {}
    with tempfile.TemporaryDirectory(prefix="fingerprints-") as temporary:
        folder = (given.keep or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=given.keep is None)
        found = run(given.python, root, folder, {"file": ["-c", "import titokctl; print(titokctl.__file__)"]})["file"]
        if Path(found.strip()).resolve() != root / "titokctl" / "__init__.py":
            sys.exit(f"error: {given.python} runs {found.strip()}, not the checkout {root}")
        make_inputs(folder)
        for group in COMMANDS.strip().split("\n\n"):
            named = dict(line.split(": ", 1) for line in group.splitlines())
            print(", ".join(named), file=sys.stderr)
            lines = {name: ["-m", "titokctl", *line.split(), "--json"] for name, line in named.items()}
            for name, said in run(given.python, root, folder, lines).items():
                if not name.startswith("job-"):  # which of the two does what is chance
                    prints[f"stdout: {name}"] = of_json(json.loads(said), folder)
        prints |= of_files(folder)
    print(json.dumps(prints, indent=1, sort_keys=True))


if __name__ == "__main__":
    main()
