"""`titokctl push`: a tokenizer, generator or token cache of this machine, in a repository on the Hugging Face Hub."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from titokctl.context import Context
from titokctl.errors import UsageError, UserError
from titokctl.formats.atomic import file_sha256
from titokctl.formats.shared_product import CARD, FILES, MAX_BYTES, NAME, TOKENS, SharedProduct
from titokctl.jobs.share.card import card
from titokctl.jobs.share.product import SharedTokens, SharedWeights, find_product
from titokctl.readable import size
from titokctl.weights.repository import Repository, repository_named

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")


@dataclass(frozen=True)
class Pushed:
    """A product on the Hub: its address; `is_new` is False if the same product was there already."""

    repository: str
    address: str
    kind: str
    file: str
    num_bytes: int
    sha256: str
    is_new: bool


@dataclass(frozen=True)
class PushPlan:
    """The files that a push would send, and the text of the card."""

    repository: str
    kind: str
    file: str
    num_bytes: int
    sha256: str
    card: str


@dataclass(frozen=True)
class Push:
    """Send a product to the repository `repository`, which is made if there is none.

    What is sent holds no path of this machine and no name of it or of its user: the product's file is written anew with
    the part of its lineage that `lineage` names, and its hashes stay. All files are one commit.

    Args:
        product: a run, a weights file, or a token cache.
        repository: USER/NAME.
        private: make a new repository private.
        license: the license's name as the Hub writes it, such as "apache-2.0"; None for a card that names none.
        overwrite: replace another product there; the repository's history keeps it.
    """

    product: str
    repository: str
    private: bool = False
    license: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if repository_named(self.repository, "model").revision != "main":
            raise UsageError("a push writes the newest state, not a revision", "leave out @REVISION")
        if self.license is not None and not _LICENSE.fullmatch(self.license):
            raise UsageError(f"{self.license!r} is not the name of a license", "e.g. --license apache-2.0, or other")

    def plan(self, context: Context) -> PushPlan:
        """Return what would be sent; nothing is sent. Raises UserError for a product that can't be read."""
        with _prepared(find_product(self.product, context), context) as (entry, _, found):
            text = card(entry, self.repository, self.license, found.about())
            return PushPlan(self.repository, entry.kind, entry.file, entry.num_bytes, entry.sha256, text)

    def run(self, context: Context) -> Pushed:
        """Send it. Raises UserError without a token or permission, or when the repository holds something else."""
        found = find_product(self.product, context)
        repository = repository_named(self.repository, "dataset" if found.kind == TOKENS else "model")
        repository.check_token()
        before = _product_of(repository)
        with _prepared(found, context) as (entry, file, _):
            result = Pushed(repository.name, "", entry.kind, entry.file, entry.num_bytes, entry.sha256, False)
            if before is not None and before.hashes == entry.hashes and before.kind == entry.kind:
                context.say(f"{repository.name} holds the same {entry.kind} already")
                return result
            if before is not None and not self.overwrite:
                raise UserError(
                    f"{repository.name} holds another {before.kind}: {_hash_of(before)}, not {_hash_of(entry)}",
                    "choose another name, or add --overwrite: the repository's history keeps the old one",
                )
            text = card(entry, self.repository, self.license, found.about())
            context.say(f"sending {entry.file}, {size(entry.num_bytes)}, to {repository.name}")
            repository.create(self.private)
            files: dict[str, Path | bytes] = {entry.file: file, NAME: entry.to_json(), CARD: text.encode()}
            address = repository.commit(files, f"{entry.kind} {_hash_of(entry)}")
            return Pushed(repository.name, address, entry.kind, entry.file, entry.num_bytes, entry.sha256, True)


@contextmanager
def _prepared(
    found: SharedWeights | SharedTokens, context: Context
) -> Iterator[tuple[SharedProduct, Path, SharedWeights | SharedTokens]]:
    """Write the file that is sent into a temporary folder; yield its entry, its path and the product."""
    with tempfile.TemporaryDirectory(prefix="titokctl-") as folder:
        path = Path(folder) / FILES[found.kind]
        hashes = found.write(path, context)
        yield SharedProduct(found.kind, path.stat().st_size, file_sha256(path), hashes), path, found


def _product_of(repository: Repository) -> SharedProduct | None:
    """Return the product in a repository; None if there is none, or no repository yet.

    Raises UserError for a repository with other files.
    """
    files = repository.files()
    if not files:
        return None
    if NAME not in files:
        raise UserError(
            f"{repository.name} holds other files ({', '.join(sorted(files)[:3])}), and was not made by titokctl",
            "choose another name",
        )
    return SharedProduct.of_json(repository.fetch(NAME, MAX_BYTES).read_bytes(), repository.name)


def _hash_of(entry: SharedProduct) -> str:
    name = "ids_sha256" if entry.kind == TOKENS else "weights_sha256"
    return entry.hashes.get(name, entry.sha256)[:12]
