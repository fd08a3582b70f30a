"""The command `titokctl`: which subcommands there are, and how a run ends."""

import os
import sys
import traceback
from typing import Annotated, Any

import typer

from titokctl import __version__
from titokctl.cli import console
from titokctl.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, Stopped, UserError

# Typer brings its own Click from 0.26 on and used the separate package before: found through what both export.
_WrongWords: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

app = typer.Typer(
    name="titokctl",
    help="TiTok from the command line: images to 32 tokens, tokens to images.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"titokctl {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.", envvar="TITOKCTL_DEBUG")] = False,
) -> None:
    if debug:
        os.environ["TITOKCTL_DEBUG"] = "1"


def _register() -> None:
    """Add one module per command; the order here is the order in --help."""
    from importlib import import_module

    for name in ():
        import_module(f"titokctl.cli.{name}").register(app)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line (`sys.argv` by default) and return the exit code. Never raises for a user's mistake."""
    try:
        _register()
        code = app(args=arguments, prog_name="titokctl", standalone_mode=False)
        return code if isinstance(code, int) else EXIT_OK
    except UserError as error:
        console.error(error.message, error.hint)
        _traceback_if_wanted()
        return error.exit_code
    except Stopped as stopped:
        console.say(f"stopped. {stopped.message} Run the same command again to go on.".replace("  ", " "))
        return stopped.exit_code
    except typer.Exit as leave:
        return leave.exit_code
    except _WrongWords as error:
        error.show(file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        console.say("interrupted.")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our stdout went away (`| head`): not an error, but nothing more can be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except MemoryError:
        console.error("not enough memory", "use a smaller batch, or a machine with more of it")
        _traceback_if_wanted()
        return EXIT_FAILED
    except Exception as error:
        console.error(f"unexpected {type(error).__name__}: {error}", "run again with --debug for the traceback")
        _traceback_if_wanted()
        return EXIT_FAILED


def _traceback_if_wanted() -> None:
    if os.environ.get("TITOKCTL_DEBUG"):
        traceback.print_exc()
