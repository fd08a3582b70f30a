"""Repositories of the Hugging Face Hub, read and written through huggingface_hub (the extra `hub`)."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from titokctl.errors import UsageError, UserError, install
from titokctl.weights.hub import first_line, no_downloads

RepositoryType = Literal["model", "dataset"]
_NAME = re.compile(r"(?P<name>[\w.-]{1,96}/[\w.-]{1,96})(@(?P<revision>[\w./-]{1,200}))?")
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token from https://huggingface.co/settings/tokens"
_AGAIN = "check the connection, and run the same command again"
_OF_GIT = ".gitattributes"  # which the Hub itself makes
_TIMEOUT_S = 20.0
_UNAUTHORIZED, _FORBIDDEN = 401, 403


@dataclass(frozen=True)
class Repository:
    """A repository on the Hub, by its name USER/NAME.

    Args:
        revision: a branch, tag or commit to read.
    """

    name: str
    type: RepositoryType
    revision: str = "main"

    @property
    def shown(self) -> str:
        """The name as people write it."""
        return self.name if self.revision == "main" else f"{self.name}@{self.revision}"

    def check_token(self) -> None:
        """Raise UserError unless a token is set on this machine; nothing is sent."""
        if self._api.token is None and self._hub.get_token() is None:
            raise UserError("no token of the Hugging Face Hub on this machine", _LOGIN)

    def files(self) -> dict[str, int | None] | None:
        """Return the names and sizes of its files; None if the token may not read it, or it does not exist."""
        with self._errors():
            try:
                found = self._api.repo_info(
                    self.name, repo_type=self.type, revision=self.revision, files_metadata=True, timeout=_TIMEOUT_S
                )
            except self._hub.errors.RepositoryNotFoundError as error:
                if _status(error) in (_UNAUTHORIZED, _FORBIDDEN) and self._hub.get_token():
                    raise
                return None
        return {one.rfilename: one.size for one in found.siblings or () if one.rfilename != _OF_GIT}

    def commit_of_revision(self) -> str:
        """Return the commit, hex digits, that the revision stands for."""
        with self._errors():
            return str(self._api.repo_info(self.name, repo_type=self.type, revision=self.revision).sha)

    def fetch(self, file: str, most_bytes: int) -> Path:
        """Download a file into the cache of huggingface_hub and return its path there.

        Raises UserError when it is not there, larger than `most_bytes`, or can't be downloaded.
        """
        with self._errors():
            url = self._hub.hf_hub_url(self.name, file, repo_type=self.type, revision=self.revision)
            size = self._hub.get_hf_file_metadata(url, timeout=_TIMEOUT_S).size
            if size is None or size > most_bytes:
                raise UserError(f"{file} of {self.shown} has {size} bytes, expected at most {most_bytes}")
            return Path(
                self._hub.hf_hub_download(self.name, file, repo_type=self.type, revision=self.revision, token=None)
            )

    def create(self, private: bool) -> None:
        """Make the repository. Raises UserError without the permission to."""
        with self._errors():
            self._api.create_repo(self.name, repo_type=self.type, private=private, exist_ok=True)

    def commit(self, files: Mapping[str, Path | bytes], message: str) -> str:
        """Write files, by name, in one commit; return its address. Raises UserError without the permission to."""
        add = self._hub.CommitOperationAdd
        operations = [add(name, data if isinstance(data, bytes) else str(data)) for name, data in files.items()]
        with self._errors():
            done = self._api.create_commit(
                self.name, operations, commit_message=message, repo_type=self.type, revision=self.revision
            )
        return str(done.commit_url)

    @cached_property
    def _hub(self) -> Any:
        if reason := no_downloads():
            raise UserError(f"{reason}, so {self.shown} can't be reached", f"unset {reason.split()[0]}")
        try:
            import huggingface_hub
            import huggingface_hub.errors
            from huggingface_hub.utils import logging
        except ImportError as error:
            raise UserError("huggingface_hub is not installed, which `push` and `pull` need", install("hub")) from error
        logging.set_verbosity(logging.CRITICAL)  # its messages would be shown beside our own errors
        return huggingface_hub

    @cached_property
    def _api(self) -> Any:
        return self._hub.HfApi()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn errors of huggingface_hub, which have many classes from several packages, into a UserError."""
        try:
            yield
        except (UserError, UsageError):
            raise
        except Exception as error:
            raise self._in_words(error) from error

    def _in_words(self, error: Exception) -> UserError:
        errors, status = self._hub.errors, _status(error)
        if status == _UNAUTHORIZED:
            return UserError("the Hugging Face Hub did not accept the token of this machine", _LOGIN)
        if status == _FORBIDDEN:
            return UserError(
                f"your token has no permission for {self.name}",
                "use a token with write access, and a name below your own user or organization: USER/NAME",
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return UserError(f"{self.name} has no revision {self.revision}", "name a branch, a tag or a commit")
        if isinstance(error, errors.RepositoryNotFoundError):
            return UserError(
                f"repository not found, or not readable with your token: {self.name}", f"check its name, or {_LOGIN}"
            )
        if isinstance(error, errors.EntryNotFoundError):
            return UserError(
                f"{self.shown} was not made by `titokctl push`", "name a repository that `titokctl push` made"
            )
        return UserError(f"{self.shown} on the Hugging Face Hub can't be reached: {first_line(error)}", _AGAIN)


def repository_named(given: str, type: RepositoryType) -> Repository:
    """Return the repository USER/NAME or USER/NAME@REVISION. Raises UsageError for another form."""
    found = _NAME.fullmatch(given)
    if found is None or ".." in given:
        raise UsageError(f"{given!r} is not the name of a repository", "its form is USER/NAME, e.g. alice/cats-64")
    return Repository(found["name"], type, found["revision"] or "main")


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)
