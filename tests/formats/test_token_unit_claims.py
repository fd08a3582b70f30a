"""Claims on units: one owner at a time, and none for ever."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from titokctl.formats.unit_claims import FOLDER, MERGE, UnitClaims

CLAIM_AND_DIE = """
import os, signal, sys
from pathlib import Path
from titokctl.formats.unit_claims import UnitClaims
claims = UnitClaims(Path(sys.argv[1]), "2/3")
claims.__enter__()
assert claims.take(7)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_unit_has_one_owner_until_it_is_released(tmp_path: Path) -> None:
    with UnitClaims(tmp_path, "1/2") as one, UnitClaims(tmp_path, "2/2") as two:
        assert one.take(3)
        assert not one.take(3)
        assert not two.take(3)
        assert two.take(4)
        assert two.take(MERGE)
        assert not one.take(MERGE)
        assert one.others_at_work()
        two.release(3)  # not its own
        assert not two.take(3)
        one.release(3)
        assert two.take(3)
    assert list(tmp_path.iterdir()) == []


def test_leaving_gives_everything_back(tmp_path: Path) -> None:
    with UnitClaims(tmp_path) as one:
        with UnitClaims(tmp_path) as two:
            assert two.take(1)
        assert one.take(1)


def test_the_claim_of_a_process_that_was_killed_is_taken_over_at_once(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", CLAIM_AND_DIE, str(tmp_path)], check=False)
    assert done.returncode == -9
    (owner,) = (tmp_path / FOLDER).glob("*.owner")
    assert json.loads(owner.read_text())["part"] == "2/3"
    with UnitClaims(tmp_path) as claims:
        assert not claims.others_at_work()
        assert claims.take(7)
        assert claims.others_at_work()


def elsewhere(folder: Path, age: float) -> None:
    """A claim on unit 5 by a process of another machine that was last heard of `age` seconds ago."""
    (folder / FOLDER).mkdir(exist_ok=True)
    owner = folder / FOLDER / "far-1-ab.owner"
    owner.write_text(json.dumps({"host": "far", "namespace": "pid:[1]", "process": 1, "started": "1"}))
    (folder / FOLDER / "unit-00000005.claim").write_text("far-1-ab")
    now = owner.stat().st_mtime
    os.utime(owner, (now - age, now - age))


@pytest.mark.parametrize(("age", "taken", "at_work"), [(5, False, True), (60, False, False), (200, True, True)])
def test_claims_of_other_machines_are_judged_by_their_age(
    tmp_path: Path, age: float, taken: bool, at_work: bool
) -> None:
    elsewhere(tmp_path, age)
    with UnitClaims(tmp_path) as claims:
        assert claims.take(5) is taken
        assert claims.others_at_work() is at_work


def test_a_claim_whose_owner_left_no_trace_is_taken_over(tmp_path: Path) -> None:
    elsewhere(tmp_path, 0)
    (tmp_path / FOLDER / "far-1-ab.owner").unlink()
    with UnitClaims(tmp_path) as claims:
        assert claims.take(5)


def test_a_claim_that_is_just_being_written_is_respected(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "unit-00000005.claim").write_text("")
    with UnitClaims(tmp_path) as claims:
        assert not claims.take(5)
    with UnitClaims(tmp_path, lease=-1) as claims:
        assert claims.take(5)


def test_once_another_process_has_removed_the_folder_there_is_nothing_to_claim(tmp_path: Path) -> None:
    with UnitClaims(tmp_path, "1/2") as late:
        shutil.rmtree(tmp_path / FOLDER)
        assert not late.take(3)
        assert not late.take(MERGE)
