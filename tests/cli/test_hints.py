"""Every command, option and recipe field that a hint names is there: hints are read from the source of the package."""

import ast
import itertools
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import toy_features
import trained
import typer
from caches import write_cache
from PIL import Image
from pydantic import BaseModel

import titokctl
from titokctl.cli import app as cli
from titokctl.config.recipe import AutoregressiveRecipe, FlowRecipe, MaskGitRecipe
from titokctl.config.tokenizer_recipe import STAGES
from titokctl.formats.run_folder import open_run

PACKAGE = Path(titokctl.__file__).resolve().parent
ERRORS = {"UserError", "UsageError"}
COMMAND = re.compile(r"`(titokctl [^`]*)`|: (titokctl .+?)(?=$|; )")
OPTION = re.compile(r"(?<![\w-])(--[a-zA-Z][\w-]*|-[a-zA-Z])(?![\w-])")
FIELD = re.compile(r"--set \"?([a-z_]+(?:\.[a-z_]+)+)=")
# Options of other programs that hints name: mkdir -p, rm -r, ulimit -u, pip -m, ray start --head.
FOREIGN = {"-c", "-k", "-p", "-r", "-u", "--no-deps", "-m", "--head"}
# The function that prints the command that follows a finished one.
NEXT_COMMAND = ("next_command", "console.next_command")
# What stands for a value that is known when the hint is shown.
VALUE = "1"


def hints() -> list[tuple[str, str]]:
    """Return place and text of every hint of an error in the package, with 1 for what is filled in."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {n.targets[0].id: n.value for n in tree.body if isinstance(n, ast.Assign) and len(n.targets) == 1
                 and isinstance(n.targets[0], ast.Name)}  # fmt: skip
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            if ast.unparse(call.func).rpartition(".")[2] not in ERRORS:
                continue
            given = [k.value for k in call.keywords if k.arg == "hint"] or call.args[1:2]
            for text in itertools.chain.from_iterable(texts(one, names) for one in given):
                found.append((f"{path.relative_to(PACKAGE)}:{call.lineno}", text))
    familiar = [(f"cli/app.py {word}", text) for word, text in cli._FAMILIAR.items()]
    return found + familiar + list(next_commands())


def next_commands() -> Iterator[tuple[str, str]]:
    """Yield place and text of the commands that finished commands name, with 1 for what is filled in."""
    for path in sorted((PACKAGE / "cli").glob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and ast.unparse(call.func) in NEXT_COMMAND:
                words = [one.value if isinstance(one, ast.Constant) else VALUE for one in call.args]
                yield f"cli/{path.name}:{call.lineno}", f"`titokctl {shlex.join(map(str, words))}`"


def texts(node: ast.expr, names: dict[str, ast.expr]) -> Iterator[str]:
    """Yield the texts that an expression may have."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        parts = [[p.value] if isinstance(p, ast.Constant) else list(texts(p.value, names)) or [VALUE]
                 for p in node.values]  # fmt: skip
        yield from ("".join(map(str, one)) for one in itertools.islice(itertools.product(*parts), 16))
    elif isinstance(node, ast.IfExp):
        yield from texts(node.body, names)
        yield from texts(node.orelse, names)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = (list(texts(side, names)) or [VALUE] for side in (node.left, node.right))
        yield from (a + b for a, b in itertools.product(left, right))
    elif isinstance(node, ast.Subscript) and isinstance(table := names.get(ast.unparse(node.value)), ast.Dict):
        yield from itertools.chain.from_iterable(texts(value, names) for value in table.values)
    elif isinstance(node, ast.Name) and isinstance(names.get(node.id), ast.Constant | ast.JoinedStr):
        yield from texts(names[node.id], {})


def commands_in(text: str) -> list[str]:
    return [(quoted or plain).strip().rstrip(".") for quoted, plain in COMMAND.findall(text)]


def root() -> Any:
    cli.register_commands()
    return typer.main.get_command(cli.app)


def options_of(command: Any) -> set[str]:
    own = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
    return own.union(*map(options_of, getattr(command, "commands", {}).values()))


ALL = hints()
SHOWN = sorted({(place, line) for place, text in ALL for line in commands_in(text)})


def test_the_source_has_many_hints():
    assert len(ALL) > 300
    assert len(SHOWN) > 30


@pytest.mark.parametrize(("place", "line"), SHOWN, ids=[f"{place} {line}" for place, line in SHOWN])
def test_the_commands_of_hints_are_valid(place: str, line: str):
    """A hint names a command alone, or a whole command line, which the parser takes."""
    command, words, name, context = root(), shlex.split(line.replace("...", ""))[1:], "titokctl", None
    if words[-1:] in (["--debug"], ["--help"]):
        words = words[:-1]
    while hasattr(command, "commands"):
        if not words:
            return  # a group alone is a valid command, or names the family
        assert words[0] in command.commands, f"{place}: {line}"
        command, name, words = command.commands[words[0]], words[0], words[1:]
    if words:
        context = command.make_context(name, words)
        assert context.params


def test_the_options_of_hints_are_there():
    known = options_of(root()) | FOREIGN | {"--help", "-h", "--debug", "--version"}
    unknown = [f"{place}: {option} in {text!r}" for place, text in ALL for option in OPTION.findall(text)
               if option not in known]  # fmt: skip
    assert not unknown


def test_the_fields_that_hints_set_are_there():
    recipes = [*STAGES.values(), MaskGitRecipe, AutoregressiveRecipe, FlowRecipe]
    fields = {field for recipe in recipes for field in below(recipe)}
    named = {(place, field) for place, text in ALL for field in FIELD.findall(text)}
    assert named
    assert not [one for one in named if one[1] not in fields]


def below(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from below(kind, f"{prefix}{name}.")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A folder with runs of a tokenizer and a generator, a token cache, a sample set, and pictures."""
    root = tmp_path_factory.mktemp("prepared")
    hashes = trained.tokenizer_run(root / "runs")
    trained.generator_run(root / "runs", hashes)
    write_cache(root / "tokens.h5", 40, codes=trained.CODES, **hashes)
    (root / "small.yaml").write_text(SMALL)
    tiny.class_folder(root / "pictures", per_class=4)
    return root


SMALL = """
kind: generator
model: {architecture: vit, num_latent_tokens: 8, codebook_size: 32, num_classes: 3, width: 16, num_layers: 1,
        num_heads: 2, mlp_width: 32}
optimizer: {learning_rate: 1e-3}
schedule: {warmup_steps: 1}
training: {steps: 2, global_batch_size: 16, micro_batch_size: 8}
"""
TRAIN = "train-gen tokens.h5 --recipe small.yaml --device cpu --dry-run"
# A command that fails, and what its hint must name so that the command, with it, is accepted.
FOLLOWED = [
    (f"{TRAIN} --procs 3", r"--set training\.global_batch_size=\d+"),
    ("sample -n 4 -o set.npz --dry-run", r"-o [\w./]+"),
    ("sample -n 4 --per-class 2 --dry-run", None),
    ("runs show missing", r"titokctl runs"),
    ("runs finish generator/gen", r"titokctl convert \S+ -o \S+"),
    ("sample -n 4 --keep-tokens 0-3 --dry-run", None),
    ("sample -n 4 --keep tokens.h5 --keep-tokens 0-7 --dry-run", r"titokctl decode \S+ -o \S+ --format png"),
    ("recipes show zzzz", None),
    ("inspect nothing.h5", None),
    ("export tokens.h5 --to jsonl -o tokens.h5", None),
    ("convert tok -o tokens.h5", None),
]


@pytest.mark.parametrize(("line", "hinted"), FOLLOWED, ids=[line for line, _ in FOLLOWED])
def test_following_a_hint_leads_on(line: str, hinted: str | None, prepared: Path, monkeypatch, capsys):
    """A failing command has a hint; a command or an option that the hint names whole is accepted."""
    monkeypatch.chdir(prepared)
    assert cli.run(line.split()) in (1, 2)
    hint = capsys.readouterr().err.partition("hint: ")[2].strip()
    assert hint, "no hint"
    if hinted is None:
        return
    named = re.search(hinted, hint)
    assert named is not None, hint
    found = named[0].strip("`")
    if found.startswith("titokctl "):
        words = shlex.split(found.replace("@STEP", ""))[1:]
        takes = options_of(root().commands[words[0]])
        words += ["--dry-run"] if "--dry-run" in takes and words[0] != "runs" else []
    else:
        option, value = found.split(" ", 1)
        words = line.split()
        if option == "-o":
            words[words.index("-o") + 1] = value
        else:
            words += [option, value]
    assert cli.run(words) == 0, capsys.readouterr().err


# Commands, and the one that each names next.
NEXT = [
    ("decode tokens.h5 -o out.npz --device cpu", "fid tokens.h5"),
    ("preview tokens.h5 -o grid.png --device cpu", "train-gen tokens.h5"),
    ("merge tokens.h5 tokens.h5 -o both.h5", "train-gen both.h5"),
    ("report generator/gen -o page.html", "runs ls"),
    ("stats squares -o ref.npz --features toy", "fid --ref ref.npz --features toy"),
    ("reconstruct squares -n 2 --features none --no-lpips --device cpu", "tokenize pictures -o tokens.h5"),
    ("tokenize pictures -o again.h5 --device cpu --runs-dir others", "train-gen again.h5 --runs-dir others"),
    ("fid runs/samples/some --ref squares --features toy", "report samples/some -o some.html"),
]


def test_a_finished_command_names_the_next_one(prepared: Path, monkeypatch, tmp_path, capsys):
    """Held-out images are judged, but the cache is of those that the tokenizer was trained on."""
    monkeypatch.chdir(prepared)
    monkeypatch.syspath_prepend(tmp_path / "package")
    toy_features.install(tmp_path / "package")
    run = open_run(prepared / "runs" / "tokenizer" / "tok")
    run.inputs = {"data": {"paths": [str(prepared / "pictures")]}}
    run.save()
    shutil.copytree("runs", "others")
    (prepared / "squares").mkdir()
    for i in range(4):
        Image.new("RGB", (trained.SIZE, trained.SIZE), (40 * i, 10, 10)).save(prepared / "squares" / f"{i}.png")
    assert cli.run(["sample", "-n", "4", "--generator", "gen", "--device", "cpu", "--format", "png"]) == 0
    drawn, said = next(Path("runs/samples").iterdir()), capsys.readouterr().err
    assert said.endswith(f"a sheet of images: {drawn}/grid.png\nnext: titokctl fid {drawn}\n")
    drawn.rename("runs/samples/some")
    for line, following in NEXT:
        assert cli.run(line.split()) == 0, capsys.readouterr().err
        said = capsys.readouterr().err.splitlines()
        assert [one for one in said if one.startswith("next: ")] == [f"next: titokctl {following}"], line
        assert cli.run([*line.split(), "--overwrite" if "-o" in line.split() else "-q", "-q"]) == 0
        assert "next: " not in capsys.readouterr().err
