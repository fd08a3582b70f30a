"""The command lines of each page of the documentation run as they stand, one after the other, on small inputs.

`documented.py` says which lines there are, with which changes they run, and which ones don't.
"""

import io
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import documented
import hub_server
import numpy as np
import pytest
import tiny
import trained
from caches import write_cache
from command_line import PATIENCE_S, ROOT, CliResult, RunCli
from documented import SHORT
from PIL import Image
from shard_server import Server
from tar_files import tar_bytes, write_tar

WITH_LINES = [page for page in documented.PAGES if documented.executed(page)]
SYNSETS = ("n01440764", "n01443537", "n02119789")
Run = Callable[..., CliResult]


def pictures(root: Path, *names: str, classes: tuple[str, ...] = ("cat", "dog")) -> None:
    """Make class folders of these names, and a picture."""
    for name in names:
        # `tune` needs 48 held-out images.
        tiny.class_folder(root / name, per_class=25 if name == "heldout" else 10, names=classes)
    (root / "one.jpg").write_bytes(tiny.jpeg(1))


def chain(root: Path, run: Run) -> None:
    """Make pictures, their cache, a generator that is trained on it, and ids that it drew."""
    pictures(root, "pictures", "heldout")
    run("tokenize pictures/ -o tokens.h5 --tokenizer scenes-64")
    run(f"train-gen tokens.h5 --recipe tiny --name gen {SHORT}")
    run("sample -n 8")
    shutil.copy(next(root.glob("runs/samples/*/ids.h5")), root / "ids.h5")


def generators(root: Path, run: Run) -> None:
    run("tokenize heldout/ -o heldout.h5 --tokenizer scenes-64")
    tiny.shards(root / "shards" / "train", 2, 10)
    tiny.shards(root / "shards" / "heldout", 1, 10)


def clusters(root: Path, run: Run) -> None:
    """Make pictures, caches as jobs and object stores leave them, and the folder that all machines see."""
    pictures(root, "pictures", "imagenet")
    (root / "shared").mkdir()
    run("tokenize imagenet/ -o bucket/tokens/ --tokenizer scenes-64")
    for name in ("a", "b"):
        run(f"merge bucket/tokens -o {name}.h5")


def imagenet(root: Path, run: Run) -> None:
    pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    pytest.importorskip("huggingface_hub")
    pictures(root, "imagenet/train", "imagenet/val", classes=SYNSETS)
    each = [tar_bytes((f"{name}_{i}.JPEG", tiny.jpeg(10 * c + i)) for i in range(8)) for c, name in enumerate(SYNSETS)]
    write_tar(root / "ILSVRC2012_img_train.tar", [(f"{n}.tar", one) for n, one in zip(SYNSETS, each, strict=True)])
    write_tar(root / "ILSVRC2012_img_val.tar",
              [(f"ILSVRC2012_val_{i:08d}.JPEG", tiny.jpeg(i)) for i in range(1, 10)])  # fmt: skip
    (root / "val_synsets.txt").write_text("\n".join(SYNSETS * 3) + "\n")
    for name in ("imagenet-train-shards", "val-shards"):
        tiny.shards(root / name, 2, 10)
    for i, shard in enumerate(sorted((root / "imagenet-train-shards").iterdir())):
        shutil.copy(shard, root / f"imagenet1k-train-{i:04d}.tar")
    rows = [{"image": {"bytes": tiny.jpeg(i), "path": f"{i}.jpg"}, "label": i % 3} for i in range(12)]
    for folder in (root / "parquet", root / "hub" / "datasets" / "owner" / "name" / "data"):
        folder.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / "train-00000-of-00001.parquet")
    edge, rng = 64, np.random.default_rng(0)
    images = [np.asarray(Image.open(io.BytesIO(tiny.jpeg(int(i)))).resize((edge, edge))) for i in rng.permutation(24)]
    np.savez(root / "VIRTUAL_imagenet256_labeled.npz", arr_0=np.stack(images))


def sharing(root: Path, run: Run) -> None:
    pytest.importorskip("huggingface_hub")
    hashes = trained.tokenizer_run(root / "runs", "tiny-1")
    trained.generator_run(root / "runs", hashes, "tiny-1")
    write_cache(root / "tokens.h5", 20, codes=trained.CODES, **hashes)


def troubleshooting(root: Path, run: Run) -> None:
    np.savez(root / "VIRTUAL_imagenet256_labeled.npz",
             arr_0=np.random.default_rng(0).integers(0, 256, (24, 64, 64, 3), np.uint8))  # fmt: skip


def example(root: Path, run: Run) -> None:
    tiny.shards(root / "shards", 2, 10)
    pictures(root, "earth/train", "earth/heldout")
    shutil.copytree(ROOT / "examples", root / "examples")
    words = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--target"]
    packages = [f"{root}/packages", "examples/causal", "examples/fsq"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *words, *packages], cwd=root, check=True, timeout=PATIENCE_S
    )


# Pages whose lines begin with the products of a chain; those of the others begin with pictures.
CHAINED = ("CONTRIBUTING.md", "docs/formats.md", "docs/generators.md", "docs/guidance.md", "docs/known-tokens.md",
           "docs/metrics.md", "docs/sweeps.md", "docs/troubleshooting.md",
           "examples/causal/README.md")  # fmt: skip
# What else lies in the folder of a page.
MORE: dict[str, Callable[[Path, Run], object]] = {
    "docs/clusters.md": clusters,
    "docs/fine-tuning.md": lambda root, _: pictures(root, "own", "heldout"),
    "docs/generators.md": generators,
    "docs/imagenet.md": imagenet,
    "docs/recipe-fields.md": lambda _, run: run("recipes cp tokenizer/tiny mine.yaml"),
    "docs/sharing.md": sharing,
    "docs/sweeps.md": lambda _, run: run(f"train-gen tokens.h5 --recipe tiny --name other {SHORT}"),
    "docs/troubleshooting.md": troubleshooting,
    "examples/causal/README.md": example,
    "examples/earth/README.md": example,
    "examples/fsq/README.md": example,
}


def in_folder(root: Path, run_cli: RunCli, **env: str) -> Run:
    """Return a function that runs the words after `titokctl` in `root`, with the runs folder that it has by default."""
    env |= {"TITOKCTL_RUNS": "runs", "XDG_CACHE_HOME": str(root / "cache"), "HOME": str(root)}
    return lambda words, code=0: run_cli(*shlex.split(words), cwd=root, env=env, code=code)


@contextmanager
def servers(page: str, root: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Serve shards of `root`, and the Hub in `root`/hub; gives an address, and variables of the commands."""
    if page not in ("docs/imagenet.md", "docs/sharing.md"):
        examples = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(root / "packages")])}
        yield "", examples if page.startswith("examples/") else {}
        return
    server = Server()
    server.files = {f"imagenet/train-000{p.name}": p.read_bytes() for p in root.glob("imagenet-train-shards/*.tar")}
    with hub_server.serve(root / "hub") as (address, _):
        try:
            yield server.url, hub_server.online(address) | {"HF_TOKEN": hub_server.TOKEN}
        finally:
            server.close()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the chain; the first page that needs the chain makes it."""
    return tmp_path_factory.mktemp("chain")


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_LINES)
def test_the_lines_of_a_page_run(page: str, run_cli: RunCli, kept: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    prepare(page, place, kept, run_cli)
    with servers(page, place) as (address, env):
        run = in_folder(place, run_cli, **env)
        for line in documented.executed(page):
            run(filled(documented.as_run(line), place, address).removeprefix("titokctl "))


def filled(text: str, place: Path, address: str) -> str:
    """Return a line with the names that are known when it is run."""
    for kind in ("samples", "generator"):
        newest = max((place / "runs" / kind).glob("*"), key=lambda path: path.stat().st_mtime, default=place)
        text = text.replace(f"{{{kind}}}", newest.name)
    return text.replace("{server}", address)


def prepare(page: str, place: Path, kept: Path, run_cli: RunCli) -> None:
    """Make the folder `place` in which the lines of `page` run."""
    if page in CHAINED:
        if not any(kept.iterdir()):
            chain(kept, in_folder(kept, run_cli))
        shutil.copytree(kept, place)
    else:
        place.mkdir()
    if page in MORE:
        MORE[page](place, in_folder(place, run_cli))
    elif page not in CHAINED:
        pictures(place, "pictures", "heldout")
