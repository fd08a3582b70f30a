"""README.md of a shared product: a model card or a data card, made of its configuration, lineage and scores."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from titokctl import __version__
from titokctl.config.models import GeneratorSizes, TokenizerConfig
from titokctl.config.recipe_files import yaml_of
from titokctl.formats.shared_product import TOKENS, SharedProduct
from titokctl.jobs.share.lineage import without_paths
from titokctl.readable import counted, first_few, readable, size

_TAGS = {
    "tokenizer": ["image-tokenizer", "titok"],
    "proxy": ["image-tokenizer", "vqgan"],
    "generator": ["image-generation", "titok"],
    TOKENS: ["image-tokens", "titok"],
}
_USE = {
    "tokenizer": ("titokctl tokenize images/ -o tokens.h5 --tokenizer {name}",),
    "proxy": ("titokctl train-tokenizer images/ --recipe titok-l-32-proxy --proxy {name}",),
    "generator": ("titokctl sample --generator {name} -n 16",),
    TOKENS: ("titokctl inspect {name}.h5", "titokctl train-gen {name}.h5"),
}
_NO_LICENSE = "Its maker named no license."
_MOST_CLASSES = 1000


@dataclass(frozen=True)
class About:
    """The facts that a card shows; none of them may hold a path, or the name of a machine or its user.

    Args:
        what: one sentence that says what the product is.
        images: descriptions of the images, by the part they had in making it; without paths.
        scores: numbers measured on it, by name.
        recipe: the settings of its training.
        classes: names of the classes.
        terms: of use of the images.
        versions: of the packages that made it.
    """

    what: str
    images: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    terms: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


def card(product: SharedProduct, repository: str, license: str | None, about: About) -> str:
    """Return the text of README.md: its YAML header, which the Hub reads, and sections for people."""
    name = repository.partition("/")[2]
    header: dict[str, Any] = {"library_name": "titokctl"} if product.kind != TOKENS else {}
    header |= {"license": license} if license else {}
    header["tags"] = ["titokctl", *_TAGS[product.kind]]
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n# {name}\n\n{about.what}",
        _use(product.kind, repository, name),
        _data(about),
        _section(
            "Scores", "Measured by titokctl.\n\n" + _table(("metric", "value"), about.scores.items()), about.scores
        ),
        _section("Training", f"```yaml\n{yaml_of(without_paths(about.recipe))}```", about.recipe),
        _identity(product, about),
        _section("License", (license or _NO_LICENSE) + ("" if license else " Ask before you use it.")),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def tokenizer_in_words(config: TokenizerConfig) -> str:
    """Return one sentence about a tokenizer."""
    codes = f"out of {config.codebook_size:,} codes" if config.codebook_size else f"of {config.token_size} numbers"
    return (
        f"A TiTok tokenizer: an image of {config.image_size} x {config.image_size} pixels becomes "
        f"{config.num_latent_tokens} tokens {codes}, and tokens become an image."
    )


def generator_in_words(config: GeneratorSizes) -> str:
    """Return one sentence about a generator."""
    classes = f" of {counted(config.num_classes, 'classes')}" if config.num_classes else ""
    return f"A generator of images{classes}, as {config.num_latent_tokens} tokens of a TiTok tokenizer."


def _use(kind: str, repository: str, name: str) -> str:
    lines = [f"titokctl pull {repository}", *(line.format(name=name) for line in _USE[kind])]
    code = "\n".join(lines)
    return f"## Use\n\nWith titokctl and huggingface_hub installed:\n\n```sh\n{code}\n```"


def _data(about: About) -> str:
    rows = [
        (part, readable(source.get("num_samples")), source.get("kind", "-"), source.get("fingerprint", "-")[:16])
        for part, source in about.images.items()
    ]
    table = _table(("images", "number", "read from", "fingerprint"), rows)
    text = table if rows else ""
    text += f"\n\nTerms of use of the images: {_one_line(about.terms)}" if about.terms else ""
    if about.classes:
        named = first_few([_one_line(name) for name in about.classes], _MOST_CLASSES)
        text += f"\n\n{counted(len(about.classes), 'classes')}: {named}"
    return _section("Data", text.strip(), text)


def _scores(about: About) -> str:
    table = _table(("metric", "value"), about.scores.items())
    return _section("Scores", f"Measured by titokctl.\n\n{table}", about.scores)


def _identity(product: SharedProduct, about: About) -> str:
    rows = {product.file: f"{size(product.num_bytes)}, SHA-256 {product.sha256}"} | product.hashes
    versions = {name: about.versions[name] for name in ("titokctl", "torch") if name in about.versions}
    text = _table(("", ""), rows.items())
    made = ", ".join(f"{name} {number}" for name, number in versions.items()) or "an unknown version"
    return _section("Identity", f"{text}\n\nMade with {made}; shared with titokctl {__version__}.")


def _section(title: str, text: str, given: object = True) -> str:
    return f"## {title}\n\n{text}" if given else ""


def _table(columns: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "\n".join("| " + " | ".join(_one_line(readable(cell)) for cell in line) + " |" for line in lines)


def _one_line(text: str) -> str:
    """Return a text in one line, without what Markdown or HTML would read in it."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return plain.replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
