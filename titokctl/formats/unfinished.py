"""Unfinished work: the one way in which long work is locked, bound to its settings, resumed, cleaned and published.

Specification: until a product is finished, what is done of it lies in a folder, by default `.<name>.unfinished/` beside
the product. A JSON file in it, the record, holds the settings that decide about the product's bytes. The process that
works there holds the lock `.lock` (`folder_lock`), in this folder unless the product is a folder that has one; several
that divide the work by arithmetic share it. Work is resumed only with equal settings. The finished product gets its
name by a rename; after that the folder is deleted.

Finished work follows the same rule: the settings that made a product are recorded, in its own format or by
`settings_record`; the same command again finds it finished, and other settings are refused.
"""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from titokctl.config.differences import flat_differences
from titokctl.errors import UserError
from titokctl.formats.atomic import disk_errors, flush_entry, make_folder, read_json, write_json, write_new_json
from titokctl.formats.folder_lock import LOCK, at_work, folder_lock, is_held
from titokctl.formats.object_store import StorePath, check_free_in_store
from titokctl.formats.replacing import FileKind, check_free, swap_in
from titokctl.formats.settings_record import publish_to_store, record_settings, recorded_settings
from titokctl.readable import first_few

SETTINGS = "settings.json"
_LINE = 160
_MAX_LINES = 20


class Unfinished:
    """The folder in which long work on `output` lies until it is finished.

    Args:
        output: the file or folder that the work becomes.
        folder: where the work lies; `.<name>.unfinished` beside the output by default.
        record: name of the record in it.
        settings_of: gives the settings in a record that has more; by default the record is the settings.
        lock: the folder that is locked; by default the one in which the work lies.
        owned: patterns of the files that belong to the work, beside the record; everything in the folder by default.
            Others are never deleted.
        option: the option of the command that names the output, for hints.
    """

    def __init__(
        self,
        output: Path,
        folder: Path | None = None,
        record: str = SETTINGS,
        settings_of: Callable[[dict[str, Any]], dict[str, Any]] = dict,
        lock: Path | None = None,
        owned: Sequence[str] = ("*",),
        option: str = "-o",
    ) -> None:
        self.output = output
        self.folder = folder or output.with_name(f".{output.name}.unfinished")
        self.record = self.folder / record
        self.lock = lock or self.folder
        self._settings_of, self._owned, self._option = settings_of, owned, option

    @contextlib.contextmanager
    def locked(self, shared: bool = False) -> Iterator[None]:
        """Be the only process at work here, or one of several that share the lock; ends with the process.

        Raises UserError when another process is at work here, or the folder can't be made.
        """
        with contextlib.ExitStack() as stack:
            with disk_errors(self.lock):
                stack.enter_context(folder_lock(self.lock, shared))
            yield

    def check_not_at_work(self) -> None:
        """Raise UserError when another process is at work here; nothing is written."""
        if is_held(self.lock):
            raise at_work(self.lock)

    def resumes(self, settings: Mapping[str, Any], overwrite: bool = False) -> bool:
        """Return True if `begin` would resume earlier work; nothing is written.

        Raises UserError, which lists the differences, when work was begun with other settings, unless `overwrite`.
        """
        if not self.record.is_file():
            return False
        changed = changes(self._settings_of(read_json(self.record)), settings)
        if changed and not overwrite:
            raise begun_with_other_settings(self.output, changed, self._option)
        return not changed

    def begin(
        self,
        settings: Mapping[str, Any],
        overwrite: bool = False,
        *,
        shared: bool = False,
        record: Mapping[str, Any] | None = None,
    ) -> bool:
        """Begin work, or resume it. Call it with the lock held. Returns True when resuming.

        What earlier work with other settings left is deleted if `overwrite`, but never where the lock is `shared`.
        Raises as `resumes`.

        Args:
            record: the record to write, where it has more than the settings.
        """
        new = dict(settings if record is None else record)
        while not self.resumes(settings, overwrite and not shared):
            if not shared:
                self.clear()
                make_folder(self.folder)
                write_json(self.record, new)
                return False
            if write_new_json(self.record, new):  # otherwise another process began just now: compare with that
                return False
        return True

    def is_finished(self, settings: Mapping[str, Any], overwrite: bool = False) -> bool:
        """Return True if the output is there, made with `settings`, and may stay; nothing is written.

        Call it after `check_output`. Raises UserError, which lists the differences, for a product of other settings.
        """
        made = None if overwrite else recorded_settings(self.output)
        if made is None:
            return False
        check_made_with(self.output, made, settings)
        return True

    @contextlib.contextmanager
    def at_once(self, settings: Mapping[str, Any]) -> Iterator[Path]:
        """Yield the path at which to make the product in one go; it becomes the output when the block succeeds.

        What a killed process left is deleted first, and everything but the product at the end. A product for an object
        store is made on this machine's disk and then written there, each file as one object.

        Args:
            settings: JSON values; everything that decides about the product, recorded with it.
        """
        if isinstance(self.output, StorePath):
            with tempfile.TemporaryDirectory(prefix="titokctl-") as folder:
                product = Path(folder) / self.output.name
                yield product
                publish_to_store(product, self.output, settings)
            return
        with self.locked():
            self.clear()
            product = self.folder / self.output.name
            try:
                yield product
                record_settings(product, self.output, settings)
                publish(product, self.output)
            finally:
                self.remove()

    def clear(self) -> None:
        """Delete all files of the work but the lock; the record last, so that nothing of unknown origin stays."""
        self.clear_all_but_record()
        self.record.unlink(missing_ok=True)

    def clear_all_but_record(self) -> None:
        """Delete all files of the work but the lock and the record, which says whose work it was."""
        owned = {path for pattern in self._owned for path in self.folder.glob(pattern)} - {self.folder / LOCK}
        for path in owned - {self.record}:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)

    def publish(self, product: Path, settings: Mapping[str, Any]) -> None:
        """Give the finished `product`, a file or folder in the work's folder, the output's name; the folder goes.

        Args:
            settings: as for `at_once`.
        """
        record_settings(product, self.output, settings)
        publish(product, self.output)
        self.remove()

    def publish_folder(self) -> None:
        """Give the folder itself the output's name, without the record and the lock."""
        self.record.unlink()
        (self.folder / LOCK).unlink(missing_ok=True)
        publish(self.folder, self.output)

    def remove(self) -> None:
        """Delete the folder, unless it holds files that don't belong to the work."""
        self.clear()
        (self.folder / LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def remove_if_idle(self) -> None:
        """Delete the folder, unless another process is at work in it."""
        if self.folder.is_dir():
            with contextlib.suppress(UserError), self.locked():
                self.remove()


def publish(product: Path, output: Path) -> None:
    """Rename the finished `product` to `output`, in place of the product that is there (`replacing`)."""
    with disk_errors(output):
        swap_in(product, output)
        flush_entry(output.absolute().parent)


def check_output(output: Path, overwrite: bool, kind: FileKind | None = None) -> None:
    """Raise UserError when `output` can't be written, before any work is done for it.

    A product whose settings are recorded may be there: `Unfinished.is_finished` compares them. The arguments are those
    of `check_free`.
    """
    if overwrite or recorded_settings(output) is None:
        check_free(output, overwrite, kind)


def check_output_in_store(output: StorePath, overwrite: bool) -> None:
    """Raise UserError as `check_output`, for a file or folder in an object store."""
    if overwrite or recorded_settings(output) is None:
        check_free_in_store(output, overwrite)


def check_made_with(output: Path, made: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raise UserError, which lists the differences, when the finished `output` was `made` with other settings."""
    if changed := changes(made, settings):
        raise made_with_other_settings(output, changed)


def made_with_other_settings(output: Path, changed: list[str]) -> UserError:
    """Return the error for a finished output of other settings; `changed` are lines as `changes` gives them."""
    return UserError(
        f"{output} exists already, made with other settings:\n{_listed(changed)}",
        "choose another output with -o, or replace this one with --overwrite",
    )


def finished_already(output: Path) -> str:
    """Return the sentence about an output that the same command has finished before."""
    return f"{output} is finished already; --overwrite makes it again"


def begun_with_other_settings(output: Path, changed: list[str], option: str = "-o") -> UserError:
    """Return the error for work that was begun with other settings.

    Args:
        changed: lines as `changes` gives them.
        option: the one that names the output.
    """
    return UserError(
        f"{output} was begun with other settings:\n{_listed(changed)}",
        f"repeat the command with those settings, choose another {option}, or start over with --overwrite",
    )


def _listed(changed: list[str]) -> str:
    return "  " + first_few(changed, _MAX_LINES, "\n  ")


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what differs between two settings as lines "field: old -> new", shortened to fit a terminal."""
    lines = flat_differences(dict(before), json.loads(json.dumps(dict(now))))
    return [line if len(line) <= _LINE else f"{line[: _LINE - 3]}..." for line in lines]
