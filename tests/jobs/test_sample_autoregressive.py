"""`titokctl sample` with an autoregressive generator: settings of its own kind, and reproducible bytes."""

from pathlib import Path

import pytest
import trained
from command_line import RunCli

from titokctl.cli.app import run
from titokctl.formats.sample_set import SampleSet
from titokctl.formats.token_cache import TokenCache
from titokctl.jobs.sample.inputs import FLAGS
from titokctl.models.autoregressive.generator import Autoregressive
from titokctl.models.maskgit.generator import MaskGit


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    hashes = trained.tokenizer_run(runs)
    trained.generator_run(runs, hashes, "masked")
    trained.generator_run(runs, hashes, "ar", kind="autoregressive")
    return runs


def words(networks: Path, generator: str, *more: object) -> list[str]:
    return [
        str(word) for word in ("sample", "--generator", generator, "--runs-dir", networks, "--device", "cpu", *more)
    ]


def test_its_settings_are_used_and_recorded(networks, tmp_path, capsys):
    changed = ("--temperature", 0.9, "--top-k", 20, "--cfg-interval", "0.1,0.9", "--cfg", "2.5w")
    assert run(words(networks, "ar", "-n", 6, "-o", tmp_path / "set", *changed)) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "between 0.1 and 0.9 of the steps; temperature 0.9, top-k 20, top-p 0.95" in said
    recorded = SampleSet.open(tmp_path / "set").manifest["settings"]["sampling"]
    assert recorded == trained.OWN_AUTOREGRESSIVE.model_dump(mode="json") | {
        "temperature": 0.9, "top_k": 20, "guidance_interval": [0.1, 0.9], "guidance_scale": 1.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("generator", "option", "message"),
    [
        ("ar", ("--steps", 8), "a generator of kind autoregressive has no setting --steps"),
        ("ar", ("--choice-temperature", 3), "no setting --choice-temperature"),
        ("ar", ("--softmax-annealing",), "no setting --softmax-annealing"),
        ("ar", ("--unmasking", "random-order"), "no setting --unmasking"),
        ("masked", ("--temperature", 1), "a generator of kind maskgit has no setting --temperature"),
        ("masked", ("--top-k", 5), "no setting --top-k"),
        ("masked", ("--top-p", 0.5), "no setting --top-p"),
        ("ar", ("--top-p", 0), "--top-p must be above 0 and at most 1, not 0"),
        ("ar", ("--top-p", 1.5), "--top-p must be above 0 and at most 1"),
        ("ar", ("--top-p", "nan"), "--top-p must be above 0 and at most 1"),
        ("ar", ("--top-k", 0), "--top-k must be at least 1"),
        ("ar", ("--temperature", -1), "--temperature must be at least 0"),
        ("ar", ("--cfg-interval", "1,0"), "not two rising fractions"),
        ("masked", ("--cfg-interval", "0.2,1.5"), "not two rising fractions"),
        ("ar", ("--solver", "heun"), "no setting --solver"),
        ("ar", ("--settings", "masked.yaml"), "a generator of kind autoregressive has no setting --steps"),
        ("masked", ("--settings", "ar.yaml"), "a generator of kind maskgit has no setting --top-p"),
        ("ar", ("--settings", "titok-l-32"), "a generator of kind autoregressive has no setting --steps"),
    ],
    ids=str,
)
def test_settings_of_another_kind_and_impossible_ones_are_named(
    networks, tmp_path, capsys, monkeypatch, generator, option, message
):
    monkeypatch.chdir(tmp_path)
    Path("masked.yaml").write_text("num_steps: 4\n")
    Path("ar.yaml").write_text("top_p: 0.9\n")
    assert run(words(networks, generator, "-o", tmp_path / "set", *option)) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert message in error
    assert "hint:" in error
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("kind", [MaskGit, Autoregressive])
def test_every_setting_has_an_option(kind, capsys):
    run(["sample", "--help"])
    shown = capsys.readouterr().out
    for name in kind.settings_class().model_fields:
        assert FLAGS[name] in shown


def test_batches_formats_and_numbers_leave_the_ids_alone(networks, tmp_path):
    for name, more in (("a", ("-n", 40)), ("b", ("-n", 40, "--batch-size", 3)), ("c", ("-n", 21, "--format", "none"))):
        assert run(words(networks, "ar", "-o", tmp_path / name, *more)) == 0
    a, b, c = (SampleSet.open(tmp_path / name) for name in "abc")
    assert a.ids.read_bytes() == b.ids.read_bytes()
    assert (TokenCache.open(a.ids).ids[:21] == TokenCache.open(c.ids).ids).all()


def test_the_first_ids_of_a_cache_can_be_kept(networks, tmp_path, capsys):
    assert run(words(networks, "ar", "-n", 20, "-o", tmp_path / "first")) == 0
    ids = SampleSet.open(tmp_path / "first").ids
    keeping = ("--keep", ids, "--keep-tokens")
    assert run(words(networks, "ar", "-o", tmp_path / "same", *keeping, "0-2")) == 0
    assert run(words(networks, "ar", "-o", tmp_path / "other", *keeping, "0,1,2", "--seed", 5)) == 0
    first, same, other = (
        TokenCache.open(SampleSet.open(tmp_path / name).ids).ids for name in ("first", "same", "other")
    )
    assert (same == first).all(), "the rest has the noise and labels that it had"
    assert (other[:, :3] == first[:, :3]).all()
    assert (other[:, 3:] != first[:, 3:]).any()
    capsys.readouterr()
    for positions, gap, example in (("4-7", 0, "0-6"), ("0,1,3", 2, "0-3"), ("7", 0, "0-6")):
        assert run(words(networks, "ar", "-o", tmp_path / "refused", *keeping, positions)) == 2
        error = " ".join(capsys.readouterr().err.split())
        assert f"leaves out position {gap} before {positions[-1]}" in error
        assert f"--keep-tokens {example}" in error
        assert run(words(networks, "ar", "-o", tmp_path / "refused", *keeping, example, "--dry-run")) == 0
        capsys.readouterr()


@pytest.mark.slow
def test_bytes_do_not_depend_on_the_number_of_processes(run_cli: RunCli, tmp_path):
    """The networks are large enough for kernels that divide their work among threads."""
    runs = tmp_path / "runs"
    vit = trained.vit(width=256, num_layers=1, num_heads=4)
    sizes = {"num_latent_tokens": 16, "codebook_size": 1024}
    hashes = trained.tokenizer_run(runs, image_size=64, encoder=vit, decoder=vit, **sizes)
    trained.generator_run(runs, hashes, kind="autoregressive", width=256, num_heads=4, mlp_width=1024, **sizes)
    assert run([*words(runs, "gen", "-n", 100, "-o", tmp_path / "one"), "--quiet", "--json"]) == 0
    run_cli(*words(runs, "gen", "-n", 100, "-o", tmp_path / "many"), "--procs", 3, "--batch-size", 5, code=0)
    for name in ("images.npz", "ids.h5"):
        assert (tmp_path / "many" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
