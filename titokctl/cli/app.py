"""The command `titokctl`: its subcommands, error messages and exit codes."""

import errno
import inspect
import io
import os
import re
import select
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from titokctl import __version__
from titokctl.cli import console
from titokctl.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, Stopped, UserError, fault_in_words

# Typer has contained its own Click since 0.26 and used the separate package before; both export BadParameter.
_WrongWords: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
# The parser's message for an argument that should be a number, in terms of its library.
_NO_NUMBER = re.compile(r"Input should be a valid (integer|number), unable to parse.*$")
# The parser's suggestion at the end of its message, which we move to the hint.
# Commands of which people expect that the second argument is the reference.
_TAKES_REFERENCE = ("fid",)
# Words that people know from other programs, and the hint that helps more than a word of similar spelling.
_FAMILIAR = {
    "'train'": "`titokctl train-tokenizer` trains a tokenizer, `titokctl train-gen` a generator",
    "'generate'": "`titokctl sample` draws images",
    "'encode'": "`titokctl tokenize` turns images into ids",
    "'eval'": "`titokctl fid` judges images, `titokctl reconstruct` a tokenizer",
    "--steps": "the number of steps is a field of the recipe: --set training.steps=N",
    "--epochs": "the length of a training is given in steps: --set training.steps=N",
    "--batch-size": "the batch is a field of the recipe: --set training.global_batch_size=N",
    "--lr": "the learning rate is a field of the recipe: --set optimizer.learning_rate=X",
    "--resume": "to resume, run the same command again; no option is needed",
}
_TRAINS = ("train-tokenizer", "train-gen")
_GUESS = re.compile(r"\.? \(?(Did you mean|Possible options:) (?P<names>[^?)]+)[?)]$")
# The modules of the commands by panel, in the order of --help.
_COMMANDS = {
    "The chain": ("demo", "scenes", "shard", "train_tokenizer", "tokenize", "train_gen", "sample", "decode", "fid"),
    "Compare and reproduce": ("stats", "compare", "tune", "reproduce", "reconstruct", "probe", "nll"),
    "Inspect products": ("inspect", "verify", "diff", "preview", "neighbors", "runs"),
    "Make, convert and share": ("detokenize", "export", "merge", "convert", "share"),
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
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.", envvar="TITOKCTL_DEBUG")] = False,
) -> None:
    os.environ["TITOKCTL_DEBUG"] = "1" if debug else ""


class _Terminal(io.FileIO):
    """The terminal on stderr. Once it was closed, messages to it are dropped, so that the work can still be saved."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return len(data)


def register_commands() -> None:
    """Import the module of every command, which adds the command to `app`, and assign the panels."""
    from importlib import import_module

    panels = {name: panel for panel, names in _COMMANDS.items() for name in names}
    for name in panels:
        import_module(f"titokctl.cli.{name}")
    _hide_type_of_flags(_root)
    for group in app.registered_groups:
        for command in group.typer_instance.registered_commands if group.typer_instance else ():
            assert command.callback is not None
            _hide_type_of_flags(command.callback)
        group.rich_help_panel = panels.get(str(group.name))
    for command in app.registered_commands:
        assert command.callback is not None
        _hide_type_of_flags(command.callback)
        command.rich_help_panel = panels.get(command.callback.__module__.rpartition(".")[2])
        command.help = _flowing(command.callback.__doc__ or "")


def _hide_type_of_flags(callback: Callable[..., Any]) -> None:
    """Show flags in the help without the type that newer releases of Typer name: <bool>."""
    for parameter in inspect.signature(callback).parameters.values():
        kind, *about = get_args(parameter.annotation) or (None,)
        if kind is bool or kind == (bool | None):
            for one in about:
                one.metavar = ""


def _flowing(docstring: str) -> str:
    """Join the lines of each paragraph, so that Typer wraps the text to the terminal instead of the source's lines."""
    paragraphs = inspect.cleandoc(docstring).split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line (`sys.argv` by default) and return the exit code. Errors are printed, not raised."""
    from titokctl.distributed import worker
    from titokctl.distributed.stop import handle_early_signals

    worker.started()
    sys.unraisablehook = _unraisable
    if sys.stderr is not None and sys.stderr.isatty():
        sys.stderr = io.TextIOWrapper(_Terminal(2, "w", closefd=False), sys.stderr.encoding, write_through=True)
    stdout = _duplicate_stdout()
    early = handle_early_signals()
    try:
        register_commands()
        code = app(args=arguments, prog_name="titokctl", standalone_mode=False)
        sys.stdout.flush()
        return _ended(code)
    except UserError as error:
        _traceback_if_wanted()
        return _failed(error.message, error.hint, error.exit_code)
    except Stopped as stopped:
        if not worker.has_launcher():
            text = f"stopped. {stopped.message} To resume, run the same command again.".replace("  ", " ")
            console.say(text)
            if _wants_json():
                console.emit_json({"stopped": text, "exit_code": stopped.exit_code})
        return worker.ended(stopped.exit_code, stopped.message)
    except typer.Exit as leave:
        return _ended(leave.exit_code)
    except _WrongWords as error:
        return _show_wrong_words(error)
    except (KeyboardInterrupt, typer.Abort):
        return _ended(EXIT_INTERRUPTED)
    except (BrokenPipeError, SystemExit) as error:
        # Click and rich turn a broken pipe into SystemExit; completion for a shell also ends with SystemExit, code 0.
        if isinstance(error, SystemExit) and not error.code:
            return worker.ended(EXIT_OK)
        if _nobody_reads(stdout):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return worker.ended(EXIT_OK)
        return _unexpected(error.__context__ or error)
    except Exception as error:
        return _unexpected(error)
    finally:
        for number, handler in early.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set from Python


def _ended(code: object) -> int:
    """Return the exit code of a command that returned `code`, and report Ctrl-C."""
    from titokctl.distributed import worker

    if code == EXIT_INTERRUPTED and not worker.has_launcher():
        console.say("interrupted.")
    return worker.ended(code if isinstance(code, int) else EXIT_OK)


def _failed(message: str, hint: str, code: int = EXIT_FAILED) -> int:
    """Print an error, unless a launcher prints it for all its processes."""
    from titokctl.distributed import worker

    if not worker.has_launcher():
        console.error(message, hint)
        if _wants_json():
            console.emit_json({"error": message, "hint": hint, "exit_code": code})
    return worker.ended(code, message, hint)


def _wants_json() -> bool:
    """Return True if the command line has --json, read without the parser, which may be what failed."""
    words = sys.argv[1:]
    return "--json" in words[: words.index("--") if "--" in words else None]


def _show_wrong_words(error: Any) -> int:
    """Print an error of the argument parser in our form; without any arguments, the help was printed instead."""
    message = str(error.format_message()).strip().rstrip(".")
    message = _NO_NUMBER.sub(lambda no: f"a {'whole ' if no[1] == 'integer' else ''}number is expected", message)
    message = message.replace("Input should be", "it should be").replace("Value error, ", "")
    if type(error).__name__ == "NoArgsIsHelpError":
        print(message, end="\n" if message else "")
        return int(error.exit_code)
    context = getattr(error, "ctx", None)
    hint = f"`{context.command_path if context else 'titokctl'} --help` lists its arguments and options"
    if guess := _GUESS.search(message):
        message, hint = message[: guess.start()], f"did you mean {guess.group('names')}? {hint}"
    if familiar := _familiar(message, context):
        hint = familiar
    if "unexpected extra argument" in message and context and context.command.name in _TAKES_REFERENCE:
        hint = f"the reference is named with --ref: `{context.command_path} SAMPLES --ref REF`"
    return _failed(message[:1].lower() + message[1:], hint, int(error.exit_code))


def _familiar(message: str, context: Any) -> str:
    """Return the hint for a word of another program; "" for a word that is not known."""
    word = message.rpartition(" ")[2]
    if not message.lower().startswith("no such") or word not in _FAMILIAR:
        return ""
    is_of_training = word.startswith("--") and word != "--resume"
    return "" if is_of_training and (context is None or context.command.name not in _TRAINS) else _FAMILIAR[word]


def _unexpected(error: BaseException) -> int:
    """Print a fault of the machine, or an unexpected error."""
    fault = fault_in_words(error)
    if fault is not None:
        message, hint = fault.message, fault.hint
    else:
        message, hint = f"unexpected {type(error).__name__}: {error}", "`titokctl --debug ...` shows the traceback"
    _traceback_if_wanted()
    return _failed(message, hint)


def _unraisable(found: Any) -> None:
    """Report an error that nobody could catch, unless it is a fault of the disk, which the command meets itself."""
    if os.environ.get("TITOKCTL_DEBUG") or fault_in_words(found.exc_value) is None:
        sys.__unraisablehook__(found)


def _duplicate_stdout() -> int:
    """Duplicate the descriptor of stdout, since rich redirects stdout when a pipe breaks; -1 if stdout is closed."""
    try:
        return os.dup(1)
    except OSError:
        return -1


def _nobody_reads(descriptor: int) -> bool:
    """Return True for a pipe whose reader has exited (`| head`), which is not an error."""
    if descriptor < 0:
        return True
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(state & select.POLLERR for _, state in poll.poll(0))


def _traceback_if_wanted() -> None:
    if os.environ.get("TITOKCTL_DEBUG"):
        traceback.print_exc()
