"""push and pull: products go to the Hub and come back with their hashes, and nothing of the machine goes along."""

import json
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import hub_server
import pytest
import trained
from caches import write_cache
from command_line import PATIENCE_S, ROOT, CliResult
from hub_server import FOREIGN_TOKEN, TOKEN

from titokctl.formats.run_folder import open_run
from titokctl.formats.token_cache import TokenCache

# One process for several commands, since each would import torch: it reads [words, token] and prints how each ended.
_SEVERAL = """
import io, json, os, sys
from contextlib import redirect_stderr, redirect_stdout
from titokctl.cli.app import run
ends = []
for words, token in json.load(sys.stdin):
    os.environ.pop("HF_TOKEN", None)
    os.environ |= {"HF_TOKEN": token} if token else {}
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = run(words)
    ends.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(ends))
"""
Commands = Callable[..., list[CliResult]]
SECRET = "zelda"  # a name that stands in every path, host and command of the records


@pytest.fixture
def hub(tmp_path, python) -> Iterator[tuple[Path, Commands]]:
    """A folder that is the Hub, and a function that runs lines of words as commands there, each with a token."""
    root = tmp_path / "hub"
    with hub_server.serve(root) as (address, _):
        environment = os.environ | hub_server.online(address) | {"HF_HOME": str(tmp_path / "hf")}
        environment |= {"TITOKCTL_RUNS": str(tmp_path / "runs"), "PYTHONPATH": str(ROOT)}

        def call(*lines: str, tokens: Iterable[str] = ()) -> list[CliResult]:
            given = [[line.split(), token] for line, token in zip(lines, tokens or [TOKEN] * len(lines), strict=True)]
            done = subprocess.run(
                [python, "-c", _SEVERAL], input=json.dumps(given),
                env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=True,
            )  # fmt: skip
            return [CliResult(*end) for end in json.loads(done.stdout)]

        yield root, call


@pytest.fixture
def products(tmp_path) -> Path:
    """A folder with runs of a tokenizer and a generator, and a token cache, whose records name a person everywhere."""
    images = {"kind": "folder", "paths": [f"/home/{SECRET}/cats"], "num_samples": 20, "fingerprint": "a" * 64}
    hashes = trained.tokenizer_run(tmp_path / "runs")
    generator = trained.generator_run(tmp_path / "runs", hashes, source=images)
    run = open_run(generator)
    run.inputs["cache"] = f"/home/{SECRET}/tokens.h5"
    run.settings = {"init": f"/home/{SECRET}/start", "training": {"steps": 7, "global_batch_size": 16}}
    run.launches = [{"command": ["titokctl", f"/home/{SECRET}"], "hosts": [SECRET], "commit": "b" * 40}]
    run.versions = {"titokctl": "0.1.0", "commit": "b" * 40}
    run.save()
    write_cache(tmp_path / "tokens.h5", 20, source=images, **hashes)
    return tmp_path


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_products_come_back_as_they_were(hub, products):
    """A generator and its tokenizer as runs of another folder, a token cache as a file; nothing of the machine."""
    root, call = hub
    ends = call(
        "push generator/gen owner/gen --license mit", "push tok owner/tok --json", "push tokens.h5 owner/ids",
        "push gen owner/gen",
        "pull owner/gen --runs-dir other", "pull owner/tok --runs-dir other --name mine", "pull owner/ids --json",
        "pull owner/gen --runs-dir other", "pull owner/ids --json",
        "inspect mine --runs-dir other",
    )  # fmt: skip
    assert [end.code for end in ends] == [0] * len(ends), ends
    assert "holds the same generator already" in ends[3].stderr
    for ours, theirs in (("generator/gen", "generator/gen"), ("tokenizer/tok", "tokenizer/mine")):
        pulled = open_run(products / "other" / theirs)
        assert pulled.hashes == open_run(products / "runs" / ours).hashes
        assert pulled.inputs["hub"]["repository"].startswith("owner/")
    assert ends[6].json["is_new"] is True
    assert ends[8].json["is_new"] is False
    before, after = (TokenCache.open(products / name) for name in ("tokens.h5", "ids.h5"))
    assert after.sha256 == before.sha256
    assert after.header.source["num_samples"] == 20

    sent = everything_in(root)
    for private in (SECRET, str(products), "b" * 40, "/somewhere"):
        assert private.encode() not in sent, private
    card = (root / "owner" / "gen" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: titokctl\nlicense: mit\n")
    for part in ("3 classes: ant, bee, cat", "global_batch_size: 16", "| training | 20 | folder | aaaaaaaaaaaaaaaa |",
                 "titokctl pull owner/gen"):  # fmt: skip
        assert part in card, part


def test_what_is_there_is_not_replaced(hub, products):
    root, call = hub
    (root / "owner" / "notes").mkdir(parents=True)
    (root / "owner" / "notes" / "thesis.pdf").write_text("pages")
    ends = call(
        "push gen owner/a", "push tok owner/a", "push tok owner/a --overwrite", "push tok owner/notes --overwrite",
        "pull owner/notes", "pull owner/a --name tok2", "pull owner/nothing", "pull owner/a -o x.h5",
    )  # fmt: skip
    assert [end.code for end in ends] == [0, 1, 0, 1, 1, 0, 1, 2], ends
    assert "holds another generator" in ends[1].stderr
    assert "holds other files (thesis.pdf)" in ends[3].stderr
    assert "was not made by `titokctl push`" in ends[4].stderr
    assert "repository not found, or not readable with your token: owner/nothing" in ends[6].stderr
    trained.tokenizer_run(products / "runs", "other", seed=3)
    weights = root / "owner" / "a" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    other, damaged = call("pull owner/a --name other", "pull owner/a --name third")
    assert "there is another run tokenizer/other" in other.stderr
    assert "does not have the hash" in damaged.stderr
    assert not (products / "runs" / "tokenizer" / "third").exists()


def test_each_refusal_is_a_sentence_and_a_hint(hub, products):
    root, call = hub
    cases = {
        "": "no token of the Hugging Face Hub",
        FOREIGN_TOKEN: "has no permission for owner/gen",
        "hf_wrong": "did not accept the token",
    }
    ends = call(*["push gen owner/gen"] * len(cases), tokens=cases)
    for end, expected in zip(ends, cases.values(), strict=True):
        assert expected in end.stderr
        assert "hint: " in end.stderr
    assert not (root / "owner").exists(), "nothing was made"


def test_without_a_network(products, run_cli, tmp_path):
    lost = hub_server.online("http://127.0.0.1:9") | {"HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "hf")}
    end = run_cli("pull", "owner/gen", env=lost, code=1)
    assert "can't be reached" in end.stderr
    assert end.stderr.count("\n") == 2, "a sentence and a hint"


def test_a_dry_run_prints_the_card_and_sends_nothing(products, run_cli):
    shown = run_cli("push", "tokens.h5", "owner/ids", "--dry-run", code=0).stdout
    assert "tags:\n- titokctl\n- image-tokens" in shown
    assert "20 images of 64 px as 8 tokens each, of 16 codes, in the views plain, flip" in shown
    assert SECRET not in shown
