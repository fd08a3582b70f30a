"""`titokctl.ray` in a pipeline of the user's own: the ids of the command, and a cache as a data set."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny

from titokctl.cli.app import run
from titokctl.formats.token_cache import TokenCache

pytest.importorskip("ray.data", reason="needs the extra ray: pip install 'titokctl[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000)
    yield
    ray.shutdown()


def test_a_pipeline_has_the_ids_of_the_command(cluster: None, tmp_path: Path) -> None:
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
