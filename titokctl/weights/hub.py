"""Downloads of released models from the Hugging Face Hub."""

import os
from pathlib import Path

from titokctl.errors import UserError, install
from titokctl.weights.known import Known
from titokctl.weights.local import bundled_file, cache_folder, in_folder

_SWITCHES = ("TITOKCTL_OFFLINE", "HF_HUB_OFFLINE")
_TRUE = {"1", "true", "yes", "on"}


def no_downloads(fetch: bool = True) -> str | None:
    """Return why nothing may be downloaded, None when it may: `fetch` is False, or an environment variable is set."""
    if not fetch:
        return "a dry run downloads nothing"
    switch = next((name for name in _SWITCHES if os.environ.get(name, "").lower() in _TRUE), None)
    return switch and f"{switch} is set"


def download(known: Known, fetch: bool = True) -> Path:
    """Fetch a released model into the Hugging Face cache and return the file or folder to read.

    Needs the `hub` extra and a network. TITOKCTL_OFFLINE=1 and HF_HUB_OFFLINE=1 turn downloads off.

    Raises:
        UserError: the download isn't possible; the message names the repository, the files and where to put them.
    """
    if known.is_bundled:
        raise UserError(
            f"{known.name} is part of titokctl, but its file {bundled_file(known)} is missing",
            "install titokctl again; or make the file with recipes/bundled/train.py",
        )
    if reason := no_downloads(fetch):
        raise _not_here(known, reason)
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
        from huggingface_hub.utils import logging
    except ImportError as error:
        raise _not_here(known, f"huggingface_hub is not installed: `{install('hub')}`") from error
    logging.set_verbosity(logging.CRITICAL)  # its retries would be shown beside our own error
    try:
        # Without a network this fails at once, while a download is retried for half a minute.
        get_hf_file_metadata(hf_hub_url(known.repository, known.files[0]))
        paths = [Path(hf_hub_download(known.repository, file)) for file in known.files]
    # Its errors have many classes, from several packages, and none of them is a bug of titokctl.
    except Exception as error:
        raise _not_here(known, f"the download failed: {first_line(error)}") from error
    return in_folder(paths[-1].parent, known)


def _not_here(known: Known, reason: str) -> UserError:
    files = " and ".join(known.files)
    return UserError(
        f"{known.name} is not on this machine ({reason})",
        f"download {files} from https://huggingface.co/{known.repository} and put "
        f"{'them' if len(known.files) > 1 else 'it'} into {cache_folder() / known.name}/",
    )


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or the name of its class."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
