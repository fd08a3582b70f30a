"""A tokenizer trained from shards on a server: said, resumed by the shard, and judged from a server, too."""

import pytest
import tiny
from remarks import Remarks
from shard_server import Server
from test_train_tokenizer import RECIPE

from titokctl.context import Context
from titokctl.distributed.stop import StopRequest
from titokctl.formats.metrics_log import MetricsLog
from titokctl.jobs.train.tokenizer import TrainTokenizer


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    running = Server()
    for path in tiny.shards(tmp_path / "shards", 3, 6).iterdir():
        running.files[path.name] = path.read_bytes()
    yield running
    running.close()


def test_shards_on_a_server_train_and_judge(server, tmp_path, runs):
    (tmp_path / "small.yaml").write_text(RECIPE)

    def train(name, steps):
        changes = ("schedule.kind=constant", "model.image_size=48", f"training.steps={steps}")
        talk = Remarks()
        with StopRequest() as stop:
            shards, held_out = f"{server.url}/{{000..001}}.tar", f"{server.url}/002.tar"
            request = TrainTokenizer([shards], str(tmp_path / "small.yaml"), changes, [held_out], name=name)
            result = request.run(Context(runs, progress=talk, stop=stop))
        return result, talk

    whole, talk = train("whole", 12)
    assert "resumes at the beginning of the shard it was in" in talk
    assert "12 images smaller than 48 px, scaled up" in talk
    assert 0 < whole.metrics["val_codebook_usage"] <= 1
    assert train("again", 12)[0].weights_sha256 == whole.weights_sha256
    train("cut", 6)
    cut, talk = train("cut", 12)
    assert "resuming from step 6 of 12" in talk
    steps = [r["step"] for r in MetricsLog(cut.run / "metrics.jsonl").read() if "loss" in r]
    assert steps == list(range(1, 13))
