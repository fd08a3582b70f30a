"""What a stage of training starts from: the VQGAN whose codes are predicted, the tokenizer whose decoder is trained.

They are named by the recipe, or found in the runs folder: the newest that fits, which is said aloud.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from titokctl.config.base import Config
from titokctl.config.differences import flat_differences
from titokctl.config.tokenizer_recipe import DecoderRecipe, ProxyRecipe, TokenizerRecipe
from titokctl.distributed.group import Group
from titokctl.dry_run import is_dry_run
from titokctl.errors import UserError
from titokctl.formats.run_folder import RunFolder, finished_runs, newest_run
from titokctl.models.titok.tokenizer import TiTok
from titokctl.models.vqgan.vqgan import MaskGitVqgan
from titokctl.weights.build import with_pixel_decoder
from titokctl.weights.hashes import weights_sha256
from titokctl.weights.load import load_proxy, load_tokenizer
from titokctl.weights.read import locate, read

Say = Callable[[str], None]


@dataclass(frozen=True)
class Start:
    """Ready networks, and for the record {"proxy": {"from": ..., "weights_sha256": ...}, "init": {...}}."""

    vqgan: MaskGitVqgan | None
    tokenizer: TiTok | None
    inputs: dict[str, dict[str, str]]

    @property
    def identity(self) -> list[str]:
        """Hashes of all of it."""
        return [entry["weights_sha256"] for entry in self.inputs.values()]


def find_start(recipe: TokenizerRecipe, runs: Path, say: Say, group: Group) -> Start:
    """What the stage of `recipe` starts from; nothing for stages that start from nothing.

    Raises UserError when it is missing, or of another architecture than the recipe's (the differences are listed).
    """
    if isinstance(recipe, ProxyRecipe):
        named = group.from_main(_vqgan_name(recipe, runs, say) if group.is_main else None)
        vqgan = load_proxy(named)
        _check_same(f"{named} is a proxy tokenizer of another size", vqgan.config, _proxy_config(recipe), "model.proxy")
        return Start(vqgan, None, {"proxy": {"from": named, "weights_sha256": weights_sha256(vqgan)}})
    if isinstance(recipe, DecoderRecipe):
        named = group.from_main(_init_name(recipe, runs, say) if group.is_main else None)
        return _decoder_start(recipe, named, runs)
    return Start(None, None, {})


def _vqgan_name(recipe: ProxyRecipe, runs: Path, say: Say) -> str:
    if recipe.proxy is not None:
        return recipe.proxy
    wanted = _proxy_config(recipe).model_dump(mode="json")
    run = newest_run(runs, "proxy", lambda run: run.settings.get("model") == wanted)
    if run is None:
        raise UserError(
            f"no proxy tokenizer was named, and none of the recipe's size was trained in {runs}",
            "train one with a recipe of stage vqgan (tiny-vqgan, maskgit-vqgan-f16), or name one with --proxy",
        )
    say(f"proxy tokenizer: {run.path} (the newest that fits in {runs}/proxy)")
    return str(run.path)


def _init_name(recipe: DecoderRecipe, runs: Path, say: Say) -> str:
    if recipe.init is not None:
        return recipe.init
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
    say(f"init: {run.path} (the newest of stage proxy that fits in {runs}/tokenizer)")
    return str(run.path)


def _decoder_start(recipe: DecoderRecipe, named: str, runs: Path) -> Start:
    """Stage-1 weights with a VQGAN's codebook and decoder; or weights that have both already, to go on with them."""
    tokenizer = load_tokenizer(named, fetch=not is_dry_run())
    given, wanted = _without_pixels(tokenizer.config), _without_pixels(recipe.model)
    _check_same(f"{named} has another architecture", given, wanted, "model")
    inputs = {"init": {"from": named, "weights_sha256": weights_sha256(tokenizer)}}
    if tokenizer.config.pixel_decoder and recipe.proxy is None:
        return Start(None, tokenizer, inputs)
    source = recipe.proxy or _recorded_vqgan(named, runs)
    vqgan = load_proxy(source, fetch=not is_dry_run())
    _check_same(f"{source} is a proxy tokenizer of another size", vqgan.config, _proxy_config(recipe), "model.proxy")
    inputs["proxy"] = {"from": source, "weights_sha256": weights_sha256(vqgan)}
    return Start(None, with_pixel_decoder(tokenizer, vqgan), inputs)


def _recorded_vqgan(named: str, runs: Path) -> str:
    """The VQGAN that the stage-1 weights `named` learnt from, by its hash among the runs, or where it was."""
    hint = "name the VQGAN that it learnt from with --proxy"
    recorded: dict[str, Any] = json.loads(read(locate(named, not is_dry_run())).extra.get("inputs", "{}")).get(
        "proxy", {}
    )
    if not recorded:
        raise UserError(f"{named} does not say which proxy tokenizer it learnt from", hint)
    digest = recorded.get("weights_sha256")
    for run in finished_runs(runs, "proxy"):
        if run.hashes.get("weights_sha256") == digest:
            return str(run.path)
    source = str(recorded.get("from"))
    try:
        found = weights_sha256(load_proxy(source, fetch=not is_dry_run()))
    except UserError as error:
        raise UserError(f"the proxy tokenizer that {named} learnt from is gone: {error.message}", hint) from error
    if found != digest:
        raise UserError(f"{source} is not the proxy tokenizer any more that {named} learnt from", hint)
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
        hint = f"each line is its field and what {section} of the recipe says"
        raise UserError(f"{message} than the recipe's: {'; '.join(different)}", hint)
