"""The scripts and lines in recipes/clusters, run unchanged: two "machines" are processes of this one.

srun and scontrol are stand-ins that do what SLURM does with a job step: one task per machine, signals forwarded to all.
"""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from caches import write_cache
from command_line import PATIENCE_S, ROOT
from process_tree import held, wait_for_files

from titokctl.cli.app import run
from titokctl.config.recipe_files import recipes_folder
from titokctl.formats.metrics_log import MetricsLog

CLUSTERS = recipes_folder() / "clusters"
WORDS = ("titokctl", "torchrun", "tokenize", "train-gen")
TASKS = """
import os, pathlib, signal, subprocess, sys
nodes = int(os.environ.get("SLURM_NNODES", 1))
tasks = []
pathlib.Path("srun.pid").write_text(str(os.getpid()))
signal.signal(signal.SIGUSR1, lambda *_: [task.send_signal(signal.SIGUSR1) for task in tasks])
for node in map(str, range(nodes)):
    own = {"SLURM_NODEID": node, "SLURM_PROCID": node, "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": str(nodes),
           "SLURM_STEP_NODELIST": "127.0.0.1"}
    tasks.append(subprocess.Popen(sys.argv[1:], env=os.environ | own))
sys.exit(max(task.wait() for task in tasks))
"""
CONTROL = 'if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> scontrol.log; fi'
GENERATOR = """
kind: generator
model: {architecture: vit, num_latent_tokens: 8, codebook_size: 16, num_classes: 3, width: 16, num_layers: 2,
        num_heads: 2, mlp_width: 32, dropout: 0.0, attention_dropout: 0.0}
views: [plain]
optimizer: {learning_rate: 1e-3, betas: [0.9, 0.96], weight_decay: 0.03}
schedule: {warmup_steps: 2}
training: {steps: 8, global_batch_size: 16, log_every: 4, evaluate_every: 8, checkpoint_every: 8}
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source")
    tiny.tokenizer(root / "tokenizer.safetensors", layers=30)
    tiny.shards(root / "shards", 12, 6)
    weights = ["--tokenizer", str(root / "tokenizer.safetensors")]
    assert run(["tokenize", str(root / "shards"), "-o", str(root / "one.h5"), *weights, "--quiet"]) == 0
    write_cache(root / "tokens.h5", 64)
    (root / "small.yaml").write_text(GENERATOR)
    return root


@pytest.fixture
def environment(python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a SLURM job on two machines, with our commands in PATH."""
    programs = {
        "srun": f"#!{sys.executable}\n{TASKS}",
        "scontrol": f"#!/bin/sh\n{CONTROL}\n",
        "titokctl": f'#!/bin/sh\nexec {python} -m titokctl "$@"\n',
        "torchrun": f'#!/bin/sh\nexec {python} -m torch.distributed.run "$@"\n',
    }
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    job = {"SLURM_JOB_ID": str(free_port() % 20_000), "SLURM_JOB_NODELIST": "node[0-1]", "SLURM_NNODES": "2"}
    own = {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    return {**os.environ, **own, **job, "TITOKCTL_RUNS": str(tmp_path / "runs")}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def example(script: str, source: Path) -> list[str]:
    """Return the words after the script's name in the first example of its header."""
    found = re.search(rf"^#   sbatch .*{script} (.*)$", (CLUSTERS / script).read_text(), re.MULTILINE)
    assert found
    return [*shlex.split(found[1].replace("shards/", f"{source}/shards")), *weights(source)]


def weights(source: Path) -> list[str]:
    return ["--tokenizer", str(source / "tokenizer.safetensors"), "--device", "cpu", "--quiet"]


def ended(job: subprocess.Popen) -> int:
    _, complaints = job.communicate(timeout=PATIENCE_S)
    assert job.returncode in (0, 75), complaints
    return job.returncode


def same(source: Path, made: Path) -> bool:
    return made.read_bytes() == (source / "one.h5").read_bytes()


def test_a_job_on_two_machines_makes_the_same_cache(source: Path, environment, start, tmp_path: Path) -> None:
    job = start(["bash", str(CLUSTERS / "slurm.sh"), *example("slurm.sh", source)], env=environment, cwd=tmp_path)
    assert ended(job) == 0
    assert same(source, tmp_path / "tokens.h5")
    assert not (tmp_path / "scontrol.log").exists()


@pytest.mark.slow
@pytest.mark.parametrize("script", ["slurm.sh", "slurm-array.sh"])
def test_a_job_whose_time_is_up_saves_and_is_queued_again(source, environment, start, tmp_path, script) -> None:
    if script == "slurm-array.sh":
        environment |= {"SLURM_NNODES": "1", "SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "1"}
    words = ["bash", str(CLUSTERS / script), *example(script, source)]
    among = (tmp_path / "tokens.h5.parts", "unit-*.safetensors", 1)
    job = start(words, env=environment | held(*among), cwd=tmp_path)
    wait_for_files(job, *among)
    os.kill(int((tmp_path / "srun.pid").read_text()), signal.SIGUSR1)
    assert ended(job) == 75
    assert (tmp_path / "scontrol.log").read_text() == f"requeue {environment['SLURM_JOB_ID']}\n"
    assert list(tmp_path.rglob("unit-*.safetensors"))
    assert ended(start(words, env=environment, cwd=tmp_path)) == 0
    assert same(source, tmp_path / "tokens.h5")


def test_tasks_of_an_array_make_one_cache(source: Path, environment, start, tmp_path: Path) -> None:
    words = ["bash", str(CLUSTERS / "slurm-array.sh"), *example("slurm-array.sh", source)]
    jobs = []
    for task in "01":
        own = {"SLURM_NNODES": "1", "SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_COUNT": "2"}
        jobs.append(start(words, env=environment | own, cwd=tmp_path))
    assert [ended(job) for job in jobs] == [0, 0]
    assert same(source, tmp_path / "tokens.h5")


@pytest.mark.parametrize("script", ["slurm.sh", "slurm-array.sh"])
def test_a_script_asks_for_the_signal_and_may_be_queued_again(script: str) -> None:
    wanted = re.findall(r"^#SBATCH --(\S+)$", (CLUSTERS / script).read_text(), re.MULTILINE)
    assert any(option.startswith("signal=USR1@") for option in wanted), "to steps, hence without B:"
    assert "requeue" in wanted


def lines() -> list[str]:
    text = (CLUSTERS / "machines.txt").read_text()
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def pairs() -> list[tuple[str, str]]:
    return list(zip(lines()[::2], lines()[1::2], strict=True))


def test_there_are_lines_for_both_commands_with_and_without_torchrun() -> None:
    assert len(pairs()) == 4
    assert all(line.replace("node-rank 1", "node-rank 0") == first for first, line in pairs())


@pytest.mark.slow
@pytest.mark.parametrize("pair", pairs(), ids=lambda pair: " ".join(w for w in pair[0].split() if w in WORDS))
def test_a_line_a_machine(pair, source: Path, environment, start, tmp_path: Path, run_cli) -> None:
    trains = "train-gen" in pair[0]
    port = str(free_port())
    places = {"node0": "127.0.0.1", "29500": port, "shards/": f"{source}/shards", "--gpus all": "--procs 1",
              "--nproc-per-node 8": "--nproc-per-node 1"}  # fmt: skip
    if trains:
        places["tokens.h5"] = f"{source}/tokens.h5"
    more = ["--recipe", str(source / "small.yaml"), "--name", "two", "--device", "cpu"] if trains else weights(source)
    environment = {name: value for name, value in environment.items() if not name.startswith("SLURM_")}
    jobs = []
    for line in pair:
        for here, there in places.items():
            line = line.replace(here, there)
        jobs.append(start([*shlex.split(line), *more], env=environment, cwd=tmp_path))
    assert [ended(job) for job in jobs] == [0, 0]
    if not trains:
        assert same(source, tmp_path / "tokens.h5")
        return
    run_cli("train-gen", source / "tokens.h5", "--recipe", source / "small.yaml", "--name", "one", code=0)
    one, two = (
        MetricsLog(tmp_path / "runs" / "generator" / name / "metrics.jsonl").newest_values() for name in ("one", "two")
    )
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["srun", "pods", "pods with ranks"])
def test_what_schedulers_set_is_enough(source: Path, environment, start, tmp_path: Path, how: str) -> None:
    """The bare command in each task of srun, and on each machine of a Kubernetes trainer."""
    words = [
        str(tmp_path / "bin" / "titokctl"),
        "tokenize",
        str(source / "shards"),
        "-o",
        "tokens.h5",
        *weights(source),
    ]
    if how == "srun":
        jobs = [start([str(tmp_path / "bin" / "srun"), *words], env=environment, cwd=tmp_path)]
    else:
        port = str(free_port())
        jobs = []
        for node in "01":
            own = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_NODE_RANK": node,
                   "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": port}  # fmt: skip
            if how == "pods with ranks":
                own |= {"RANK": node, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            pod = {name: value for name, value in environment.items() if not name.startswith("SLURM_")}
            jobs.append(start(words, env=pod | own, cwd=tmp_path))
    assert [ended(job) for job in jobs] == [0] * len(jobs)
    assert same(source, tmp_path / "tokens.h5")
