"""Files of another kind under the name of one that is read: each reader says what they are, and what to do."""

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from titokctl.context import Context
from titokctl.errors import UserError
from titokctl.evaluation.image_sets import Opening, open_images
from titokctl.formats.run_folder import open_run
from titokctl.formats.sample_set import SampleSet
from titokctl.formats.statistics import read_statistics
from titokctl.formats.token_cache import TokenCache
from titokctl.jobs.caches.inspect import Inspect
from titokctl.weights.load import load_tokenizer
from titokctl.weights.pickled import read_pickled

FOUND = {
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456789\n",
        "Git LFS pointer", "git lfs pull",
    ),
    "login": (b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>", "HTML page", "the access it needs"),
    "late html": (b"\n\n  <html><body>404</body></html>", "HTML page", "download it again"),
    "error": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML document", ""),
    "gzip": (gzip.compress(b"x" * 2000), "compressed with gzip", "gunzip -k"),
    "pdf": (b"%PDF-1.7 " + b"x" * 100, "PDF document", ""),
}  # fmt: skip


def a_run(path: Path) -> None:
    folder = path.with_suffix("")
    folder.mkdir()
    path.rename(folder / "run.json")
    open_run(folder)


def a_sample_set(path: Path) -> None:
    folder = path.with_suffix("")
    folder.mkdir()
    path.rename(folder / "manifest.json")
    SampleSet.open(folder)


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "token cache": ("t.h5", TokenCache.open),
    "weights": ("w.safetensors", load_tokenizer),
    "old weights": ("w.bin", read_pickled),
    "statistics": ("s.npz", read_statistics),
    "images": ("s.npz", lambda path: open_images(path, Opening(Context(path.parent)))),
    "run": ("run.json", a_run),
    "sample set": ("manifest.json", a_sample_set),
    "anything": ("thing.bin", lambda path: Inspect(path).run(Context(path.parent))),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", FOUND)
def test_it_is_named_by_its_first_bytes(reader, kind, tmp_path):
    (data, words, advice), (name, read) = FOUND[kind], READERS[reader]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as caught:
        read(tmp_path / name)
    assert words in caught.value.message
    assert advice in caught.value.hint
