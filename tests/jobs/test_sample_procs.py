"""`titokctl sample` in several processes: the same bytes for any number of them, stopped, killed and resumed."""

import json
import signal
from pathlib import Path

import pytest
import trained
from command_line import RunCli
from process_tree import end
from trained import sampling

from titokctl.cli.app import run

NUM_IMAGES = 200


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("images.npz", "ids.h5", "grid.png")}


def test_bytes_do_not_depend_on_the_number_of_processes(networks: Path, run_cli: RunCli, tmp_path: Path) -> None:
    """The networks are large enough for kernels that divide their work among threads."""
    runs = tmp_path / "runs"
    wide = {"encoder": (vit := trained.vit(width=256, num_layers=1, num_heads=4)), "decoder": vit}
    hashes = trained.tokenizer_run(runs, image_size=64, num_latent_tokens=16, codebook_size=1024, **wide)
    trained.generator_run(
        runs, hashes, num_latent_tokens=16, codebook_size=1024, width=256, num_heads=4, mlp_width=1024
    )
    number = ("-n", 100)
    assert run([*sampling(runs, tmp_path / "one", *number), "--quiet", "--json"]) == 0
    done = run_cli(*sampling(runs, tmp_path / "many", *number, "--procs", 3, "--batch-size", 5), "--json", code=0)
    assert done.json["num_images"] == 100
    assert done.stderr.count("guidance s = ") == 1
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


@pytest.mark.parametrize("rule", [pytest.param("random-order", marks=pytest.mark.slow), "remasking"])
def test_every_unmasking_rule_gives_the_same_bytes_in_several_processes(networks, run_cli, tmp_path, rule) -> None:
    settings = ("--unmasking", rule, *(("--remasking-cap", 0.5) if rule == "remasking" else ()))
    number = ("-n", 50, "--format", "none")
    assert run([*sampling(networks, tmp_path / "one", *number, *settings), "--quiet", "--json"]) == 0
    run_cli(*sampling(networks, tmp_path / "many", *number, *settings, "--procs", 2, "--batch-size", 3), code=0)
    assert (tmp_path / "many" / "ids.h5").read_bytes() == (tmp_path / "one" / "ids.h5").read_bytes()


# The others don't wait for a worker that died.
SLOW = ((signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130), ("parent", -9))


@pytest.mark.parametrize("endings", [(("worker", 1),), pytest.param(SLOW, marks=pytest.mark.slow)], ids=["1", "all"])
def test_killed_workers_and_signals_and_a_killed_parent(
    networks: Path, start, python: str, tmp_path: Path, endings
) -> None:
    """One set, ended and resumed several times: each time the finished images are kept; the bytes are right."""
    output, number = tmp_path / "set", 600
    for ending, code in endings:
        for chunk in list(output.glob(".unfinished/chunk-*"))[1:]:
            chunk.unlink()
        command = sampling(networks, output, "-n", number, "--procs", 2)
        end(start, python, command, ending, code, output / ".unfinished", "chunk-*", 1)
        assert not (output / "manifest.json").exists()
    assert run([*sampling(networks, output, "-n", number), "--quiet", "--json"]) == 0
    assert run([*sampling(networks, tmp_path / "undisturbed", "-n", number), "--quiet"]) == 0
    assert contents(output) == contents(tmp_path / "undisturbed")


@pytest.mark.slow
def test_a_finished_set_and_an_error_are_reported_once(networks: Path, run_cli: RunCli, tmp_path: Path) -> None:
    line = sampling(networks, tmp_path / "set", "-n", NUM_IMAGES, "--procs", 2)
    first = run_cli(*line, "--json", code=0)
    assert json.loads(first.stdout)["images_per_second"] > 0
    again = [word for word in line if word not in ("-o", str(tmp_path / "set"))]
    run_cli(*again, code=0)
    assert run_cli(*again, "--json", code=0).json["images_per_second"] == 0
    refused = run_cli(*line, "--classes", 9, "--overwrite")
    assert refused.code == 2
    assert refused.stderr.count("error:") == 1
