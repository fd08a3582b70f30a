"""`titokctl.ray` in a pipeline of the user's own: the ids of the command, its cache, and a cache as a data set."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny

from titokctl.cli.app import run
from titokctl.errors import UserError
from titokctl.formats.token_cache import TokenCache

pytest.importorskip("ray.data", reason="needs the extra ray: pip install 'titokctl[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_a_pipeline_has_the_ids_of_the_command(ray_cluster: str, tmp_path: Path) -> None:
    """An image that can't be decoded keeps its row, with the reason; a cache is read back in order."""
    import pyarrow as pa
    import ray.data

    import titokctl.ray

    weights = str(tmp_path / "t.safetensors")
    tiny.tokenizer(Path(weights))
    images = tiny.class_folder(tmp_path / "images", 6)
    output = str(tmp_path / "tokens.h5")
    assert run(["tokenize", str(images), "-o", output, "--tokenizer", weights, "--quiet"]) == 0
    cache = TokenCache.open(output)
    files = [path.read_bytes() for path in sorted(images.rglob("*.jpg"))]
    table = pa.table({"bytes": [*files, b"no image"], "key": [*map(str, range(12)), "bad"], "label": [3] * 12 + [None]})
    made = ray.data.from_arrow(table).map_batches(
        titokctl.ray.Tokenize, fn_constructor_args=(weights,), batch_format="pyarrow", batch_size=5, concurrency=1
    )
    rows = {row["key"]: row for row in made.take_all()}
    assert rows["bad"]["tokens"] is None
    assert rows["bad"]["rejected"].startswith("format")
    assert (rows["bad"]["label"], rows["7"]["label"]) == (-1, 3)
    assert [list(rows[str(i)]["tokens"]) for i in range(12)] == cache.ids[:].tolist()
    assert [list(rows[str(i)]["flip"]) for i in range(12)] == cache.view("flip")[:].tolist()
    back = sorted(titokctl.ray.read_tokens(output, "flip").take_all(), key=lambda row: row["row"])
    assert [list(row["tokens"]) for row in back] == cache.view("flip")[:].tolist()
    assert [(row["key"], row["label"]) for row in back] == [(cache.key(i), int(cache.labels[i])) for i in range(12)]


@pytest.fixture
def in_order() -> Iterator[None]:
    import ray.data

    options = ray.data.DataContext.get_current().execution_options
    options.preserve_order = True
    yield
    options.preserve_order = False


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, images of two classes, and the cache that the command makes of them."""
    root = tmp_path_factory.mktemp("made")
    tiny.tokenizer(root / "t.safetensors")
    tiny.class_folder(root / "images", 20)
    words = ["tokenize", str(root / "images"), "--tokenizer", str(root / "t.safetensors"), "--quiet"]
    assert run([*words, "-o", str(root / "tokens.h5")]) == 0
    return root


def rows_of(made: Path, *more: dict, blocks: int = 7):
    """The images of `made`, tokenized in a pipeline with more blocks than workers.

    Workers that took both of the cluster's CPUs could leave none for the blocks that they wait for.
    """
    import pyarrow as pa
    import ray.data

    import titokctl.ray

    cache = TokenCache.open(made / "tokens.h5")
    images = [
        {"bytes": (made / "images" / f"{cache.key(i)}.jpg").read_bytes(), "key": cache.key(i), "label": int(label)}
        for i, label in enumerate(cache.labels)
    ]
    data = ray.data.from_arrow(pa.Table.from_pylist([*images, *more])).repartition(blocks)
    return data.map_batches(
        titokctl.ray.Tokenize,
        fn_constructor_args=(str(made / "t.safetensors"),),
        batch_format="pyarrow",
        batch_size=4,
        concurrency=2,
        num_cpus=0.5,
    )


def is_finished(path: Path) -> bool:
    try:
        TokenCache.open(path)
    except UserError:
        return False
    return True


def test_a_pipeline_writes_the_cache_of_the_command(ray_cluster: str, in_order: None, made: Path, tmp_path) -> None:
    """With the same keys in the same order; with its header, the merged file has the same bytes."""
    import titokctl.ray

    whole = TokenCache.open(made / "tokens.h5")
    output = tmp_path / "tokens"
    rows_of(made).write_datasink(titokctl.ray.TokenSink(output, whole.header, rows_per_part=10))
    cache = TokenCache.open(output)
    assert cache.sha256 == whole.sha256
    assert cache.damage(lambda rows: None) == []
    assert len(list(output.glob("unit-*"))) > 1
    mine = titokctl.ray.header_for(str(made / "t.safetensors"), class_names=whole.class_names)
    for name in ("encoder_sha256", "preprocessing", "views", "made_with", "row_shape", "row_dtype"):
        assert getattr(mine, name) == getattr(whole.header, name)
    with pytest.raises(Exception, match="exists already"):
        titokctl.ray.TokenSink(output, whole.header)


def test_a_pipeline_whose_order_is_left_to_chance_is_refused(ray_cluster: str, made: Path, tmp_path: Path) -> None:
    import titokctl.ray

    header = titokctl.ray.header_for(str(made / "t.safetensors"))
    with pytest.raises(Exception, match="the order of the rows would be that in which Ray finishes its work"):
        rows_of(made).write_datasink(titokctl.ray.TokenSink(tmp_path / "tokens", header))
    assert not is_finished(tmp_path / "tokens")
    rows_of(made).write_datasink(titokctl.ray.TokenSink(tmp_path / "tokens", header, any_order=True))
    cache, whole = TokenCache.open(tmp_path / "tokens"), TokenCache.open(made / "tokens.h5")
    assert sorted(cache.keys) == sorted(whole.keys)
    at = {key: row for row, key in enumerate(whole.keys)}
    assert (cache.ids[:] == whole.ids[:][[at[key] for key in cache.keys]]).all()


def test_rejected_images_are_listed_and_too_many_leave_the_folder_unfinished(
    ray_cluster: str, in_order: None, made: Path, tmp_path: Path
) -> None:
    """The same pipeline with a larger share allowed completes the folder, also with other parts."""
    import titokctl.ray

    bad = {"bytes": b"no image", "key": "bad", "label": 0}
    header = titokctl.ray.header_for(str(made / "t.safetensors"))

    def sink(**more: object):
        return titokctl.ray.TokenSink(tmp_path / "tokens", header, **more)  # type: ignore[arg-type]

    with pytest.raises(Exception, match=r"1 of 41 images"):
        rows_of(made, bad).write_datasink(sink(max_rejected=0.0, rows_per_part=5))
    assert not is_finished(tmp_path / "tokens")
    rows_of(made, bad, blocks=2).write_datasink(sink(max_rejected=0.1))
    cache = TokenCache.open(tmp_path / "tokens")
    assert (len(cache), cache.header.num_rejected) == (40, 1)
    assert cache.damage(lambda rows: None) == []
    (line,) = (tmp_path / "tokens.rejected.jsonl").read_text().splitlines()
    assert (json.loads(line)["key"], json.loads(line)["kind"]) == ("bad", "format")
