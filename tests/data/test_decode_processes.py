"""Images decoded by processes: the same pixels, an error when one dies, and none left behind."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from image_files import class_folders, encoded, noise
from process_tree import has_ended, wait_for_end

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.decoding import DecodeProcesses, decode_files, empty_squares
from titokctl.data.images import preprocess
from titokctl.data.pipeline import Decoder
from titokctl.data.sources import Source, open_source
from titokctl.errors import UserError

CONFIGS = [PreprocessingConfig(size=16), PreprocessingConfig(size=20, crop="adm")]


@pytest.fixture
def source(tmp_path: Path) -> Source:
    class_folders(tmp_path / "in", each=30)
    for position, data in ((0, b""), (17, b"GIF89a"), (59, None)):
        path = tmp_path / "in" / open_source([tmp_path / "in"]).names[position]  # type: ignore[attr-defined]
        path.write_bytes(path.read_bytes()[:200] if data is None else data)
    return open_source([tmp_path / "in"])


def test_processes_and_threads_give_the_same(source: Source) -> None:
    unit = source.units[0]
    with Decoder(source, CONFIGS, 3, by_threads=0) as processes, Decoder(source, CONFIGS, 3) as threads:
        ours, theirs = processes.unit(unit), threads.unit(unit)
        assert processes.process_ids
        assert not threads.process_ids
        again = processes.unit(unit)
    assert ours.keys == theirs.keys
    assert ours.rejected == theirs.rejected
    assert [r.key for r in ours.rejected] == [source.keys()[p] for p in (0, 17, 59)]
    kept = [p for p in range(60) if p not in (0, 17, 59)]
    assert ours.positions.tolist() == theirs.positions.tolist() == kept
    np.testing.assert_array_equal(ours.pixels, [preprocess(s.data, CONFIGS[0]) for s in source.read_many(kept)])
    for made in (theirs, again):
        np.testing.assert_array_equal(made.pixels, ours.pixels)
        np.testing.assert_array_equal(made.further[0], ours.further[0])


def test_files_larger_than_the_memory_at_first() -> None:
    files = [encoded(noise(900, 900, seed=i), "PNG") for i in range(3)]
    assert sum(map(len, files)) > 4 << 20
    into = [empty_squares(3, 16)]
    with contextlib.closing(DecodeProcesses(CONFIGS[:1])) as processes:
        assert processes.decode(files[:1], into) == []
        assert processes.decode(files, into) == []
    np.testing.assert_array_equal(into[0], [preprocess(data, CONFIGS[0]) for data in files])


def test_squares_of_large_images_keep_their_order() -> None:
    files = [encoded(np.full((2000, 2000, 3), level, np.uint8), "PNG") for level in (10, 20, 30, 40)]
    into = [empty_squares(4, config.size) for config in CONFIGS]
    assert [i for i, _, _ in decode_files([files[0], b"", *files[1:]], CONFIGS, into)] == [1]
    assert [array.mean(axis=(1, 2, 3)).tolist() for array in into] == [[10, 20, 30, 40]] * 2


def test_a_killed_process_is_an_error_and_the_others_end(source: Source) -> None:
    with (  # noqa: PT012
        pytest.raises(UserError, match="decodes images was killed by signal 9"),
        Decoder(source, CONFIGS, 2, by_threads=0) as decoder,
    ):
        decoder.unit(source.units[0])
        pids = decoder.process_ids
        os.kill(pids[0], signal.SIGKILL)
        for _ in range(20):
            decoder.unit(source.units[0])
    assert all(map(has_ended, pids))


PARENT = """
import sys, time
from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.decoding import DecodeProcesses
from titokctl.data.decoding import empty_squares
processes = DecodeProcesses([PreprocessingConfig(size=16)])
processes.decode([b""], [empty_squares(1, 16)])
print(processes.ids[0], flush=True)
time.sleep(600)
"""


def test_processes_end_with_a_killed_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not has_ended(pid)
        parent.kill()
    wait_for_end([pid])


def test_decoding_imports_no_torch() -> None:
    code = "import sys, titokctl.data.decoding; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
