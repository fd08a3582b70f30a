"""Rank and number of processes, from the environments that launchers and clusters set."""

import pytest

from titokctl.distributed.launch import relaunch
from titokctl.distributed.place import Place, adopt_slurm, first_host, is_placed, place


def test_alone_without_a_launcher(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert place() == Place(0, 1, 0)
    assert place().is_main


def test_torchruns_variables_are_read(monkeypatch):
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert place() == Place(5, 8, 1)
    assert not place().is_main


SRUN = {
    "SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "123456",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
}  # fmt: skip


def test_the_tasks_of_srun_are_processes():
    environment = dict(SRUN)
    adopt_slurm(environment)
    assert (environment["RANK"], environment["WORLD_SIZE"], environment["LOCAL_RANK"]) == ("9", "16", "1")
    assert environment["MASTER_ADDR"] == "gpu03"
    assert 20_000 <= int(environment["MASTER_PORT"]) < 40_000


def test_tasks_of_srun_start_no_processes_of_their_own(monkeypatch):
    """Although each may see all GPUs of its machine."""
    monkeypatch.setattr("os.environ", dict(SRUN))
    assert not relaunch(None, None, otherwise="all")


POD = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "8"}


@pytest.mark.parametrize(
    ("environment", "placed"),
    [({}, False), ({"RANK": "1"}, True), (POD, False), (POD | {"RANK": "1"}, False),
     (POD | {"RANK": "9", "LOCAL_RANK": "1"}, True)],
)  # fmt: skip
def test_the_rank_of_a_machine_is_not_that_of_a_process(environment, placed):
    assert is_placed(environment) == placed


@pytest.mark.parametrize(
    "environment",
    [{}, {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, SRUN | {"RANK": "2"}, SRUN | {"SLURM_STEP_NUM_TASKS": "1"}],
)
def test_other_environments_are_left_alone(environment):
    before = dict(environment)
    adopt_slurm(environment)
    assert environment == before


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu03", "gpu03"), ("a,b", "a"), ("gpu[03-05,9],cpu1", "gpu03"), ("n[7]", "n7"), ("n[1-2]-ib", "n1-ib")],
)
def test_the_first_host_of_a_node_list(nodes, first):
    assert first_host(nodes) == first
