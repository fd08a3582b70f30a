"""`titokctl pull`: a product from the Hugging Face Hub, as a run or a token cache of this machine."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from titokctl.context import Context
from titokctl.errors import UsageError, UserError
from titokctl.formats.atomic import atomic_path, file_sha256
from titokctl.formats.replacing import CACHE, check_free
from titokctl.formats.run_folder import WEIGHTS, RunFolder, check_is_run, check_run_name, open_run
from titokctl.formats.shared_product import MAX_BYTES, NAME, TOKENS, SharedProduct
from titokctl.formats.token_cache import TokenCache
from titokctl.formats.unfinished import Unfinished
from titokctl.jobs.launch_record import launch_record
from titokctl.readable import size
from titokctl.weights.hashes import product_hashes
from titokctl.weights.read import read
from titokctl.weights.repository import Repository, RepositoryType, repository_named
from titokctl.weights.store import build

_RECORD = "run.json"


@dataclass(frozen=True)
class Pulled:
    """A product that is on this machine now: the run folder or the cache; `is_new` is False if it was here already."""

    repository: str
    revision: str
    kind: str
    output: Path
    num_bytes: int
    hashes: dict[str, str]
    is_new: bool = True


@dataclass(frozen=True)
class Pull:
    """Fetch the product in a repository that `Push` made.

    Args:
        repository: USER/NAME, or USER/NAME@REVISION.
        name: of the run that weights become; by default the repository's.
        output: the file that a token cache becomes; by default NAME.h5.
        overwrite: replace a token cache at `output`.
    """

    repository: str
    name: str | None = None
    output: Path | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        repository_named(self.repository, "model")
        check_run_name(self.name)
        if self.name is not None and self.output is not None:
            raise UsageError("--name and -o are mutually exclusive", "--name is for a run, -o for a token cache")

    def plan(self, context: Context) -> Pulled:
        """Return what would be fetched; only the record of the product is read. Raises as `run`."""
        repository, product = self._find()
        output = self._output(product, context)
        return Pulled(repository.name, repository.revision, product.kind, output, product.num_bytes, product.hashes)

    def run(self, context: Context) -> Pulled:
        """Fetch it.

        Raises UserError when the repository does not exist, the file does not have the recorded hash, or something else
        has its name here.
        """
        repository, product = self._find()
        output = self._output(product, context)
        result = Pulled(repository.name, repository.revision, product.kind, output, product.num_bytes, product.hashes)
        if _is_here(output, product):
            context.say(f"{output} holds the same {product.kind} already")
            return replace(result, is_new=False)
        context.say(f"fetching {product.file}, {size(product.num_bytes)}, from {repository.shown}")
        fetched = repository.fetch(product.file, product.num_bytes)
        if file_sha256(fetched) != product.sha256:
            raise UserError(
                f"{product.file} of {repository.shown} does not have the hash that its {NAME} records",
                "the upload may be incomplete: ask its owner to push it again",
            )
        if product.kind == TOKENS:
            self._keep_tokens(fetched, output, product)
        else:
            _keep_weights(fetched, output, product, repository, context)
        return result

    def _find(self) -> tuple[Repository, SharedProduct]:
        """Return the repository at a fixed commit, so that all files are of one state, and the product in it."""
        types: tuple[RepositoryType, ...] = ("model", "dataset")
        for type in types:
            found = repository_named(self.repository, type)
            files = found.files()
            if files is None:
                continue
            fixed = Repository(found.name, found.type, found.commit_of_revision())
            return fixed, SharedProduct.of_json(fixed.fetch(NAME, MAX_BYTES).read_bytes(), found.shown)
        raise UserError(
            f"repository not found, or not readable with your token: {self.repository}",
            "check its name; for a private one, log in with `hf auth login`",
        )

    def _output(self, product: SharedProduct, context: Context) -> Path:
        name = repository_named(self.repository, "model").name.partition("/")[2]
        wrong = self.name if product.kind == TOKENS else self.output
        if wrong is not None:
            used, other = ("--name", "-o") if product.kind == TOKENS else ("-o", "--name")
            raise UsageError(f"{used} does not apply: {self.repository} holds a {product.kind}", f"use {other}")
        if product.kind != TOKENS:
            check_run_name(self.name or name)
            output = context.runs / product.kind / (self.name or name)
            check_is_run(output)
            if (output / _RECORD).exists() and not _is_here(output, product):
                raise UserError(f"there is another run {product.kind}/{output.name}", "choose another --name")
            return output
        output = self.output or Path(f"{name}.h5")
        if not _is_here(output, product):
            check_free(output, self.overwrite, CACHE)
        return output

    def _keep_tokens(self, fetched: Path, output: Path, product: SharedProduct) -> None:
        cache = TokenCache.open_whole(fetched)
        hashes = {"encoder_sha256": cache.header.encoder_sha256, "ids_sha256": cache.sha256}
        _check_hashes(hashes, product)
        output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(output) as temporary:
            shutil.copyfile(fetched, temporary)


def _keep_weights(
    fetched: Path, folder: Path, product: SharedProduct, repository: Repository, context: Context
) -> None:
    """Make a finished run of the weights; its record says where they came from."""
    weights = read(fetched)
    if weights.kind != product.kind:
        raise UserError(f"{repository.shown} holds a {weights.kind}, but its {NAME} says {product.kind}")
    _check_hashes(product_hashes(build(weights, str(fetched), "cpu", None)), product)
    inputs: dict[str, Any] = json.loads(weights.extra.get("inputs", "{}"))
    inputs["hub"] = {"repository": repository.name, "revision": repository.revision}
    with Unfinished(folder, folder, _RECORD).locked():
        with atomic_path(folder / WEIGHTS) as temporary:
            shutil.copyfile(fetched, temporary)
        run = RunFolder(folder, product.kind, inputs=inputs, launches=[launch_record(context)])
        run.finish(WEIGHTS, product.hashes)


def _check_hashes(found: dict[str, str], product: SharedProduct) -> None:
    if found != product.hashes:
        raise UserError(
            f"the {product.kind} has other hashes than its {NAME} records", "ask its owner to push it again"
        )


def _is_here(output: Path, product: SharedProduct) -> bool:
    """Return True if the product is here under this name."""
    try:
        if product.kind == TOKENS:
            return TokenCache.open(output, check_ids=False).sha256 == product.hashes.get("ids_sha256")
        run = open_run(output)
        return any(one.hashes == product.hashes for one in run.products)
    except (UserError, OSError, ValueError):
        return False
