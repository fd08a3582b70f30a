"""A product in a repository of the Hugging Face Hub: `titokctl.json` says which file it is.

Specification: a repository that `titokctl push` made holds one product. Tokenizers, proxies and generators are
`weights.safetensors` in a model repository, token caches `tokens.h5` in a dataset repository. Beside it are README.md
and titokctl.json, a JSON object with format "titokctl/shared", format_version 1, kind ("tokenizer", "proxy",
"generator" or "tokens"), file (one of these two names), num_bytes and sha256 of that file, and hashes (by name: those
that run.json records of a product; of a cache encoder_sha256 and ids_sha256). All files are of one commit.
"""

import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from titokctl.errors import UserError
from titokctl.formats.atomic import check_version

NAME, CARD = "titokctl.json", "README.md"
FORMAT, FORMAT_VERSION = "titokctl/shared", 1
TOKENS = "tokens"
FILES = {"tokenizer": "weights.safetensors", "proxy": "weights.safetensors", "generator": "weights.safetensors",
         TOKENS: "tokens.h5"}  # fmt: skip
MAX_BYTES = 1 << 16  # of titokctl.json
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class SharedProduct:
    """The entry titokctl.json of a repository.

    Args:
        kind: a key of `FILES`.
        num_bytes, sha256: of the product's file.
        hashes: of the product, by name.
    """

    kind: str
    num_bytes: int
    sha256: str
    hashes: dict[str, str]

    @property
    def file(self) -> str:
        """The name of the product's file."""
        return FILES[self.kind]

    def to_json(self) -> bytes:
        """Return the contents of titokctl.json."""
        record = {"format": FORMAT, "format_version": FORMAT_VERSION, "file": self.file} | asdict(self)
        return (json.dumps(record, indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def of_json(cls, data: bytes, where: str) -> "SharedProduct":
        """Read titokctl.json. Raises UserError, which names `where`, when it is damaged or too new."""
        try:
            record = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{NAME} of {where} is not JSON") from error
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise UserError(f"{NAME} of {where} is not a record of titokctl", "name a repository that `push` made")
        check_version(record.get("format_version", 0), FORMAT_VERSION, where, "format of shared products")
        kind, size, sha256, hashes = (record.get(name) for name in ("kind", "num_bytes", "sha256", "hashes"))
        wrong = [] if isinstance(kind, str) and FILES.get(kind) == record.get("file") else ["kind"]
        wrong += [] if type(size) is int and size > 0 else ["num_bytes"]
        wrong += [] if _is_hash(sha256) else ["sha256"]
        wrong += [] if isinstance(hashes, dict) and all(map(_is_hash, hashes.values())) else ["hashes"]
        if wrong:
            raise UserError(f"{NAME} of {where} is damaged: {', '.join(wrong)}")
        return cls(str(kind), int(str(size)), str(sha256), dict(hashes or {}))


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and bool(_SHA256.fullmatch(value))
