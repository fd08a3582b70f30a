"""The command `titokctl`: which subcommands there are, and how a run ends."""

import inspect
import os
import re
import select
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from titokctl import __version__
from titokctl.cli import console
from titokctl.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, Stopped, UserError

# Typer brings its own Click from 0.26 on and used the separate package before: found through what both export.
_WrongWords: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
# torch has errors of its own for it, which can't be named here without importing torch.
_MEMORY = re.compile(r"OutOfMemoryError|can't allocate memory|Cannot allocate memory")
# How the parser says that a word is no number, in its library's terms.
_NO_NUMBER = re.compile(r"Input should be a valid (integer|number), unable to parse.*$")
# What the parser thinks was meant, at the end of its message: ours goes into the hint.
_GUESS = re.compile(r"\.? \(?(Did you mean|Possible options:) (?P<names>[^?)]+)[?)]$")
# The modules of the commands in the order of --help, by the panel they stand in.
_COMMANDS = {
    "The chain": ("demo", "shard", "train_tokenizer", "tokenize", "train_gen", "sample", "decode", "fid"),
    "Compare and reproduce": ("stats", "compare", "reproduce", "reconstruct"),
    "Look at products": ("inspect", "verify", "diff", "preview", "neighbors", "runs"),
    "Make and convert": ("export", "merge", "convert"),
    "Machine, models, recipes": ("weights", "recipes", "doctor"),
}

app = typer.Typer(
    name="titokctl",
    help="TiTok from the command line: images to 32 tokens, tokens to images.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from titokctl.formats.checkout import commit_of

        commit = commit_of(Path(__file__).resolve().parents[2])
        print(f"titokctl {__version__}" + (f" (commit {commit[:12]})" if commit else ""))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.", envvar="TITOKCTL_DEBUG")] = False,
) -> None:
    os.environ["TITOKCTL_DEBUG"] = "1" if debug else ""


def _register() -> None:
    """Import one module per command, each of which adds itself; then put them into panels."""
    from importlib import import_module

    panels = {name: panel for panel, names in _COMMANDS.items() for name in names}
    for name in panels:
        import_module(f"titokctl.cli.{name}")
    for group in app.registered_groups:
        group.rich_help_panel = panels.get(str(group.name))
    for command in app.registered_commands:
        assert command.callback is not None
        command.rich_help_panel = panels.get(command.callback.__module__.rpartition(".")[2])
        command.help = _flowing(command.callback.__doc__ or "")


def _flowing(docstring: str) -> str:
    """Each paragraph on one line: Typer would keep the source's line breaks and wrap between them again."""
    paragraphs = inspect.cleandoc(docstring).split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line (`sys.argv` by default) and return the exit code. Never raises for a user's mistake."""
    from titokctl.distributed import worker

    worker.started()
    stdout = _duplicate_stdout()
    try:
        _register()
        code = app(args=arguments, prog_name="titokctl", standalone_mode=False)
        sys.stdout.flush()
        return _ended(code)
    except UserError as error:
        _traceback_if_wanted()
        return _failed(error.message, error.hint, error.exit_code)
    except Stopped as stopped:
        if not worker.has_launcher():
            console.say(f"stopped. {stopped.message} Run the same command again to go on.".replace("  ", " "))
        return worker.ended(stopped.exit_code, stopped.message)
    except typer.Exit as leave:
        return _ended(leave.exit_code)
    except _WrongWords as error:
        return _show_wrong_words(error)
    except (KeyboardInterrupt, typer.Abort):
        return _ended(EXIT_INTERRUPTED)
    except (BrokenPipeError, SystemExit) as error:
        # Click and rich turn a broken pipe into SystemExit themselves; a shell that asks for completions gets 0.
        if isinstance(error, SystemExit) and not error.code:
            return worker.ended(EXIT_OK)
        if _nobody_reads(stdout):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return worker.ended(EXIT_OK)
        return _unexpected(error.__context__ or error)
    except Exception as error:
        return _unexpected(error)


def _ended(code: object) -> int:
    """The exit code of a command that returned `code`; Ctrl-C is the only end that wants a remark."""
    from titokctl.distributed import worker

    if code == EXIT_INTERRUPTED and not worker.has_launcher():
        console.say("interrupted.")
    return worker.ended(code if isinstance(code, int) else EXIT_OK)


def _failed(message: str, hint: str, code: int = EXIT_FAILED) -> int:
    """Show an error; one of several processes leaves that to its launcher, so that it is shown once."""
    from titokctl.distributed import worker

    if not worker.has_launcher():
        console.error(message, hint)
    return worker.ended(code, message, hint)


def _show_wrong_words(error: Any) -> int:
    """Show what the argument parser found in the form of all our errors. No words at all have had the help shown."""
    message = str(error.format_message()).strip().rstrip(".")
    message = _NO_NUMBER.sub(lambda no: f"a {'whole ' if no[1] == 'integer' else ''}number is expected", message)
    message = message.replace("Input should be", "it should be").replace("Value error, ", "")
    if type(error).__name__ == "NoArgsIsHelpError":
        print(message, end="\n" if message else "")
        return int(error.exit_code)
    context = getattr(error, "ctx", None)
    hint = f"`{context.command_path if context else 'titokctl'} --help` says what it takes"
    if guess := _GUESS.search(message):
        message, hint = message[: guess.start()], f"did you mean {guess.group('names')}? {hint}"
    return _failed(message[:1].lower() + message[1:], hint, int(error.exit_code))


def _unexpected(error: BaseException) -> int:
    """Show an error that nobody foresaw, or a machine that was too small."""
    if isinstance(error, MemoryError) or _MEMORY.search(f"{type(error).__name__}: {error}"):
        message, hint = "not enough memory", "use a smaller batch, or a machine with more of it"
    else:
        message, hint = f"unexpected {type(error).__name__}: {error}", "`titokctl --debug ...` shows the traceback"
    _traceback_if_wanted()
    return _failed(message, hint)


def _duplicate_stdout() -> int:
    """A second descriptor of stdout: rich points the first one elsewhere when a pipe breaks. -1 when there is none."""
    try:
        return os.dup(1)
    except OSError:
        return -1


def _nobody_reads(descriptor: int) -> bool:
    """True for a pipe whose reader went away (`| head`): not an error, but nothing more can be written."""
    if descriptor < 0:
        return True
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(state & select.POLLERR for _, state in poll.poll(0))


def _traceback_if_wanted() -> None:
    if os.environ.get("TITOKCTL_DEBUG"):
        traceback.print_exc()
