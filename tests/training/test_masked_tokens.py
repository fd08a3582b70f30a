"""The generator's training step: the same for any number of processes and micro batches, safe against bad steps."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from caches import write_cache

import titokctl
from titokctl.config import recipe_files
from titokctl.data.tokens import TokenRows, held_out
from titokctl.distributed.group import single_group
from titokctl.distributed.launch import run_workers
from titokctl.formats.token_cache import TokenCache
from titokctl.models.initialization import initialize
from titokctl.models.maskgit.generator import MaskGit
from titokctl.models.maskgit.masking import mask_ratio, masked_accuracy, masked_count, random_subset
from titokctl.training.generator_task import GeneratorTask

STILL = ("model.dropout=0.0", "model.attention_dropout=0.0")


def make_task(cache, recipe, *overrides, group=None):
    settings = recipe_files.load(str(recipe), "generator", overrides)
    torch.manual_seed(0)
    model = MaskGit(settings.model)
    initialize(model)
    rows = TokenRows(TokenCache.open(cache), settings.views, None)
    return GeneratorTask(model.train(), settings, rows, None, group or single_group())


def run(task, steps, first=0):
    losses = []
    for step in range(first, first + steps):
        task.prepare(step)
        losses.append(float(task.step(step)["loss"]))
    return losses


WORKER = """
import json, sys
from titokctl.distributed import worker
worker.started()
sys.path.insert(0, sys.argv[1])
import torch
from test_masked_tokens import STILL, make_task, run
from titokctl.distributed.group import process_group
with process_group("cpu") as group:
    task = make_task(*sys.argv[2:4], *STILL, group=group)
    losses = run(task, 20)
    if group.is_main:
        open(sys.argv[4], "w").write(json.dumps(losses))
sys.exit(worker.ended(0))
"""


def test_processes_and_micro_batches_make_no_difference(cache, recipe, tmp_path, monkeypatch, command_server):
    whole = run(make_task(cache, recipe, *STILL), 20)
    pieces = run(make_task(cache, recipe, *STILL, "training.micro_batch_size=4"), 20)
    np.testing.assert_allclose(pieces, whole, rtol=1e-4)
    tests = Path(__file__).resolve().parent
    monkeypatch.setenv("PYTHONPATH", f"{Path(titokctl.__file__).resolve().parents[1]}:{tests.parent}")
    (tmp_path / "worker.py").write_text(WORKER)
    found = tmp_path / "losses.json"
    run_workers([str(tmp_path / "worker.py"), str(tests), str(cache), str(recipe), str(found)], 2)
    np.testing.assert_allclose(json.loads(found.read_text()), whole, rtol=1e-4)
    assert whole[0] > whole[-1]


def test_recomputing_activations_changes_nothing(cache, recipe):
    losses = [
        run(make_task(cache, recipe, f"model.architecture={body}", f"training.activation_checkpointing={recompute}"), 5)
        for body in ("vit", "uvit")
        for recompute in ("true", "false")
    ]
    assert losses[0] == losses[1]
    assert losses[2] == losses[3]
    assert losses[0] != losses[2]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiling_changes_next_to_nothing(cache, recipe):
    plain = run(make_task(cache, recipe, *STILL), 3)
    compiled = run(make_task(cache, recipe, *STILL, "training.compile=true"), 3)
    np.testing.assert_allclose(compiled, plain, rtol=1e-4)


@pytest.mark.parametrize("muon", ["null", "1e-3"])
def test_a_step_that_is_not_finite_is_skipped_and_counted(cache, recipe, muon):
    task = make_task(cache, recipe, f"optimizer.muon_learning_rate={muon}")
    run(task, 3)
    before = {name: t.clone() for name, t in task.learner.tensors().items() if not name.startswith("ema.")}
    poison = task.model.head.weight.register_hook(lambda gradient: gradient * float("nan"))
    task.prepare(3)
    metrics = task.step(3)
    after = task.learner.tensors()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["skipped_steps"]
    assert int(metrics["skipped_steps"]) == int(metrics["skipped_in_a_row"]) == 1
    poison.remove()
    task.prepare(4)
    metrics = task.step(4)
    assert int(metrics["skipped_steps"]) == 1
    weights = task.model.head.weight
    assert weights.isfinite().all()
    assert not torch.equal(weights, before["module.head.weight"]), "it goes on after that"


def test_a_share_of_labels_is_left_out_and_rows_without_any_have_none(cache, recipe, tmp_path):
    task = make_task(cache, recipe)
    dropped = torch.cat([task.drawn(step).drawn.dropped for step in range(300)])
    assert dropped.float().mean().item() == pytest.approx(0.1, abs=5 * (0.09 / len(dropped)) ** 0.5)
    draws = task.drawn(0)
    task.prepare(0)
    labels = task.rows.at(draws.positions, draws.view).labels
    assert torch.equal(task.batch.labels, torch.where(draws.drawn.dropped, 3, labels))
    unlabelled = make_task(write_cache(tmp_path / "none.h5", 50, classes=0), recipe)
    unlabelled.prepare(0)
    assert (unlabelled.batch.labels == 3).all()


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("schedule", ["arccos", "root"])
@pytest.mark.parametrize("tokens", [1, 8, 32])
def test_masks_of_steps_follow_the_schedule(recipe, tmp_path, tokens, schedule, seed):
    changes = (f"loss.mask_schedule={schedule}", f"training.seed={seed}", f"model.num_latent_tokens={tokens}")
    task = make_task(write_cache(tmp_path / "few.h5", 20, tokens=tokens), recipe, *changes)
    draws = [task.drawn(step).drawn for step in range(200)]
    counts = torch.cat([draw.tensors["masked"].sum(1) for draw in draws]).double()
    times = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    expected = masked_count(mask_ratio(times, schedule), tokens).double()
    assert (counts.mean() - expected.mean()).abs() <= 4 * expected.std() / len(counts) ** 0.5
    for draw in draws[:5]:
        masked = draw.tensors["masked"]
        assert draw.total_weight == pytest.approx(float(masked.sum() + 0.1 * (~masked).sum()), rel=1e-5)


@pytest.mark.parametrize("micro", ["null", "4"])
def test_a_steps_loss_equals_a_plain_numpy_version(cache, recipe, micro):
    task = make_task(cache, recipe, *STILL, f"training.micro_batch_size={micro}")
    task.prepare(0)
    batch, masked = task.batch, task.batch.tensors["masked"]
    with torch.no_grad():
        logits = task.model(torch.where(masked, task.recipe.model.mask_id, batch.ids), batch.labels).double().numpy()
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    each = -0.9 * np.take_along_axis(log_p, batch.ids.numpy()[..., None], -1)[..., 0] - 0.1 * log_p.mean(-1)
    weights = np.where(masked.numpy(), 1, 0.1)
    assert float(task.step(0)["loss"]) == pytest.approx((each * weights).sum() / weights.sum(), rel=1e-5)


def test_held_out_rows_are_never_trained_on_and_survive_reordering(cache):
    keys = TokenCache.open(cache).keys.tolist()
    kept = held_out(keys, 0.25)
    assert 20 < kept.sum() < 80
    assert (held_out(keys[::-1], 0.25)[::-1] == kept).all()


def test_each_epoch_sees_every_row_once(cache):
    rows = TokenRows(TokenCache.open(cache), ("plain",), None)
    seen = torch.cat([rows.positions(0, step, 16) for step in range(25)])  # two epochs of 200
    assert torch.equal(seen[:200].sort().values, torch.arange(200))
    assert torch.equal(seen[200:].sort().values, torch.arange(200))
    assert not torch.equal(seen[:200], seen[200:])


def test_rows_come_in_their_views_with_their_labels(cache):
    opened = TokenCache.open(cache)
    chosen = np.arange(10, 60)
    rows = TokenRows(opened, ("plain", "flip"), chosen)
    positions, view = torch.arange(50).flip(0), torch.arange(50) % 2
    batch = rows.at(positions, view)
    for i in range(50):
        ids = opened.view("flip" if view[i] else "plain")[chosen[positions[i]]]
        assert batch.ids[i].tolist() == ids.tolist()
        assert int(batch.labels[i]) == opened.labels[chosen[positions[i]]]


@pytest.mark.parametrize(("codes", "kind"), [(1 << 16, "<u2"), (1 << 17, "<u4")])
def test_large_ids_survive(tmp_path, codes, kind):
    opened = TokenCache.open(write_cache(tmp_path / "large.h5", 30, codes=codes))
    batch = TokenRows(opened, ("plain",), None).at(torch.arange(30), torch.zeros(30, dtype=torch.int64))
    assert batch.ids.max() > 1 << 15
    assert torch.equal(batch.ids, torch.from_numpy(opened.ids.astype(np.int64)))


def test_it_learns_what_the_label_decides(cache, recipe):
    quick = ("training.steps=120", "training.global_batch_size=64", "training.ema_decay=0.9", "views=[plain]")
    task = make_task(cache, recipe, *quick, *STILL, "optimizer.learning_rate=4e-3")
    run(task, 120)
    generator = task.averaged()
    logits = generator(torch.full((3, 8), task.recipe.model.mask_id), torch.arange(3))
    assert torch.equal(logits[:, 0].argmax(-1), torch.arange(3)), "the first id is the class"


@pytest.mark.slow
def test_tiny_overfits_64_rows(tmp_path):
    """Rows of random ids can only be learnt by heart: half of an image must tell the other half."""
    tiny = recipe_files.load("tiny", "generator").model
    cache = write_cache(tmp_path / "64.h5", 64, codes=tiny.codebook_size, tokens=tiny.num_latent_tokens)
    task = make_task(cache, "tiny", "model.num_classes=3", "views=[plain]", "training.steps=200")
    run(task, 200)
    rows = task.rows.at(torch.arange(64), torch.zeros(64, dtype=torch.int64))
    count = masked_count(torch.full((64,), 0.5), tiny.num_latent_tokens)
    masked = random_subset(count, tiny.num_latent_tokens, torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits = task.averaged()(torch.where(masked, tiny.mask_id, rows.ids), rows.labels)
    assert masked_accuracy(logits, rows.ids, masked) > 0.99
