"""The networks that a stage of training starts from: a VQGAN whose codes are predicted, a tokenizer to be continued.

The recipe names them, or the newest that fits is taken from the runs folder and reported.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from titokctl.config.base import Config
from titokctl.config.differences import flat_differences
from titokctl.config.tokenizer_recipe import DecoderRecipe, ProxyRecipe, SingleRecipe, TokenizerRecipe, VqganRecipe
from titokctl.distributed.group import Group
from titokctl.errors import UserError
from titokctl.formats.run_folder import RunFolder, finished_runs, newest_run
from titokctl.models.titok.tokenizer import TiTok
from titokctl.models.vqgan.vqgan import MaskGitVqgan
from titokctl.weights.adoption import Given, planned
from titokctl.weights.hashes import encoder_sha256, weights_sha256
from titokctl.weights.load import load_proxy, load_tokenizer
from titokctl.weights.read import locate, read
from titokctl.weights.references import in_runs
from titokctl.weights.store import skeleton, with_pixel_decoder

Say = Callable[[str], None]
_SHOWN = 3


@dataclass(frozen=True)
class Start:
    """The networks, and for the record {"proxy": {"from": ..., "weights_sha256": ...}, "init": {...}}.

    `tokenizer` is continued by stage decoder; of `init` the other stages take what fits.
    """

    vqgan: MaskGitVqgan | None
    tokenizer: TiTok | None
    inputs: dict[str, dict[str, Any]]
    init: Given | None = None

    @property
    def identity(self) -> list[str]:
        """The hashes of all networks."""
        return [entry["weights_sha256"] for entry in self.inputs.values()]


def find_start(recipe: TokenizerRecipe, runs: Path, say: Say, group: Group, fetch: bool = True) -> Start:
    """Load the networks that the stage of `recipe` starts from, if any; `fetch` downloads them if necessary.

    Raises UserError when one is missing or has another architecture than the recipe's (the differences are listed).
    """
    if isinstance(recipe, DecoderRecipe):
        named = group.from_main(_init_name(recipe, runs, say) if group.is_main else None)
        return _decoder_start(recipe, named, runs, fetch)
    if recipe.codebook.continuous_steps >= recipe.training.steps and recipe.model.codebook_size:
        say(_never_quantized(recipe.codebook.continuous_steps, recipe.training.steps))
    init, inputs = _given(recipe, runs, say, fetch)
    if isinstance(recipe, ProxyRecipe):
        named = group.from_main(_vqgan_name(recipe, runs, say) if group.is_main else None)
        vqgan = load_proxy(named, fetch=fetch)
        _check_same(f"{named} has other sizes", vqgan.config, _proxy_config(recipe), "model.proxy")
        of_proxy = {"proxy": {"from": named, "weights_sha256": weights_sha256(vqgan)}}
        return Start(vqgan, None, of_proxy | inputs, init)
    return Start(None, None, inputs, init)


def _never_quantized(continuous: int, steps: int) -> str:
    """Return the warning that training ends before its codes begin."""
    return (
        f"warning: training.steps={steps} ends before the codes are made, after codebook.continuous_steps="
        f"{continuous}: such a tokenizer is of no use; --set codebook.continuous_steps={steps // 2} makes them in time"
    )


def _given(
    recipe: SingleRecipe | VqganRecipe | ProxyRecipe, runs: Path, say: Say, fetch: bool
) -> tuple[Given | None, dict[str, dict[str, Any]]]:
    """Load the weights that the recipe names as `init`, and report what is taken of them."""
    if recipe.init is None:
        return None, {}
    kind = "proxy" if isinstance(recipe, VqganRecipe) else "tokenizer"
    named = in_runs(recipe.init, runs, kind, say)
    network = load_proxy(named, fetch=fetch) if kind == "proxy" else load_tokenizer(named, fetch=fetch)
    given = Given(named, weights_sha256(network), network)
    adoption = planned(skeleton(kind, recipe.model), given)
    say(f"init: {named}: {adoption.in_words()}")
    if any(name.endswith("codebook") for name in adoption.resized):
        say(_cached_ids_warning(named, network, recipe.model.codebook_size, runs))
    if recipe.codebook.continuous_steps and any(name.endswith("codebook") for name in adoption.taken):
        say(
            f"warning: k-means replaces the codes of the given weights after {recipe.codebook.continuous_steps} steps; "
            "--set codebook.continuous_steps=0 keeps them"
        )
    return given, {"init": adoption.record(given)}


def _cached_ids_warning(named: str, network: TiTok | MaskGitVqgan, codes: int | None, runs: Path) -> str:
    """Return the warning that ids which were cached with `network` mean nothing to a tokenizer with other codes."""
    sha256 = encoder_sha256(network) if isinstance(network, TiTok) else ""
    trained = [run for run in finished_runs(runs, "generator") if run.inputs.get("encoder_sha256") == sha256]
    shown = ", ".join(run.reference for run in trained[:_SHOWN]) + (", ..." if len(trained) > _SHOWN else "")
    return (
        f"warning: the codebook of {named} is resized from {network.config.codebook_size:,} to {codes:,} codes, so ids "
        "that were cached with it don't fit the new one: tokenize the images again"
        + (f", and train {shown} again" if trained else "")
    )


def _vqgan_name(recipe: ProxyRecipe, runs: Path, say: Say) -> str:
    if recipe.proxy is not None:
        return in_runs(recipe.proxy, runs, "proxy", say)
    wanted = _proxy_config(recipe).model_dump(mode="json")
    run = newest_run(runs, "proxy", lambda run: run.settings.get("model") == wanted)
    if run is None:
        raise UserError(
            f"no proxy tokenizer was named, and none of the recipe's size was trained in {runs}",
            "train one with a recipe of stage vqgan (tiny-vqgan, maskgit-vqgan-f16), or name one with --proxy",
        )
    say(f"proxy tokenizer: {run.reference} (the newest that fits in {runs}/proxy)")
    return run.reference


def _init_name(recipe: DecoderRecipe, runs: Path, say: Say) -> str:
    if recipe.init is not None:
        return in_runs(recipe.init, runs, "tokenizer", say)
    wanted = _without_pixels(recipe.model)

    def fits(run: RunFolder) -> bool:
        model = run.settings.get("model")
        return run.settings.get("stage") == "proxy" and isinstance(model, dict) and _without_pixels(model) == wanted

    run = newest_run(runs, "tokenizer", fits)
    if run is None:
        raise UserError(
            f"no run of stage proxy in {runs} has the model of this recipe",
            "train one with the -proxy recipe of the same name, or name its weights with --init",
        )
    say(f"init: {run.reference} (the newest of stage proxy that fits in {runs}/tokenizer)")
    return run.reference


def _decoder_start(recipe: DecoderRecipe, named: str, runs: Path, fetch: bool) -> Start:
    """Load stage-1 weights with a VQGAN's codebook and decoder, or weights that have both already."""
    tokenizer = load_tokenizer(named, fetch=fetch)
    theirs, wanted = _without_pixels(tokenizer.config), _without_pixels(recipe.model)
    _check_same(f"{named} has another architecture", theirs, wanted, "model")
    inputs = {"init": {"from": named, "weights_sha256": weights_sha256(tokenizer)}}
    if tokenizer.config.pixel_decoder and recipe.proxy is None:
        return Start(None, tokenizer, inputs)
    given = None if recipe.proxy is None else in_runs(recipe.proxy, runs, "proxy", lambda _: None)
    source = given or _recorded_vqgan(named, runs, fetch)
    vqgan = load_proxy(source, fetch=fetch)
    _check_same(f"{source} has other sizes", vqgan.config, _proxy_config(recipe), "model.proxy")
    inputs["proxy"] = {"from": source, "weights_sha256": weights_sha256(vqgan)}
    return Start(None, with_pixel_decoder(tokenizer, vqgan), inputs)


def _recorded_vqgan(named: str, runs: Path, fetch: bool) -> str:
    """Return the VQGAN that the stage-1 weights `named` were trained on: a run with its hash, or its recorded path."""
    hint = "name the VQGAN that it was trained on with --proxy"
    recorded: dict[str, Any] = json.loads(read(locate(named, fetch)).extra.get("inputs", "{}")).get("proxy", {})
    if not recorded:
        raise UserError(f"{named} does not record which proxy tokenizer it was trained on", hint)
    digest = recorded.get("weights_sha256")
    for run in finished_runs(runs, "proxy"):
        if run.hashes.get("weights_sha256") == digest:
            return run.reference
    source = str(recorded.get("from"))
    try:
        found = weights_sha256(load_proxy(source, fetch=fetch))
    except UserError as error:
        raise UserError(
            f"the proxy tokenizer that {named} was trained on can't be loaded: {error.message}", hint
        ) from error
    if found != digest:
        raise UserError(f"{source} changed since {named} was trained on it", hint)
    return source


def _proxy_config(recipe: ProxyRecipe | DecoderRecipe) -> Config:
    return cast(Config, recipe.model.proxy)


def _without_pixels(model: Config | dict[str, Any]) -> dict[str, Any]:
    settings = model.model_dump(mode="json") if isinstance(model, Config) else model
    return {name: value for name, value in settings.items() if name != "pixel_decoder"}


def _check_same(message: str, found: Config | dict[str, Any], wanted: Config | dict[str, Any], section: str) -> None:
    a, b = (c.model_dump(mode="json") if isinstance(c, Config) else c for c in (found, wanted))
    different = flat_differences(a, b)
    if different:
        hint = f"each entry is a field, its value there, and the value in {section} of the recipe"
        raise UserError(f"{message} than the recipe's: {'; '.join(different)}", hint)
