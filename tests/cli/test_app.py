"""The command line: help, the form of errors, exit codes, colour, pipes, Ctrl-C."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from command_line import PATIENCE_S

import titokctl
from titokctl.formats.checkout import commit_of

COLOUR = re.compile(rb"\x1b\[[\d;]*(?:3\d|4\d|9\d|10\d)[\d;]*m")
ROOT = Path(titokctl.__file__).resolve().parents[1]
COMMAND = ("-m", "titokctl")


def environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **changes}


def on_a_terminal(python: str, *words: str, columns: int = 80, **changes: str) -> tuple[int, bytes]:
    """Run the command on a new terminal; return the exit code and the output."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    process = subprocess.Popen(
        [python, *COMMAND, *words], stdin=theirs, stdout=theirs, stderr=theirs, env=environment(**changes)
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:  # the other end of the terminal is closed
        pass
    finally:
        os.close(ours)
    return process.wait(timeout=PATIENCE_S), shown


def in_process(python: str, code: str, *, words: str) -> subprocess.CompletedProcess:
    """Run `titokctl <words>` after `code`, which may add commands to `app`."""
    start = f"import sys, typer\nfrom titokctl.cli.app import app, run\n{code}\nsys.exit(run({words!r}.split()))"
    return subprocess.run(
        [python, "-c", start], env=environment(), capture_output=True, text=True, timeout=PATIENCE_S, cwd=ROOT
    )


def test_version(run_cli):
    result = run_cli("--version", code=0)
    commit = commit_of(ROOT)
    assert result.stdout == f"titokctl {titokctl.__version__}{f' (commit {commit[:12]})' if commit else ''}\n"
    assert result.stderr == ""


@pytest.mark.parametrize("words", [(), ("recipes",)])
def test_without_a_command_the_help_is_shown(run_cli, words):
    result = run_cli(*words, code=2)
    assert "Usage: titokctl" in result.stdout
    assert ("Commands" if words else "The chain") in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_is_printed_on_stdout(run_cli, option):
    result = run_cli("recipes", "cp", option, code=0)
    assert "Copy a recipe" in result.stdout
    assert "Example: titokctl recipes cp" in result.stdout
    assert "--overwrite" in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (
            "recipse",
            "no such command 'recipse'",
            "did you mean 'recipes'? `titokctl --help` lists its arguments and options",
        ),
        ("train", "no such command 'train'", "`titokctl train-tokenizer` trains a tokenizer, `titokctl train-gen` a"),
        ("train-gen --steps 3", "no such option: --steps", "the number of steps is a field of the recipe: --set"),
        ("train-gen tokens.h5 --resume", "no such option: --resume", "to resume, run the same command again"),
        (
            "--vresion",
            "no such option: --vresion",
            "did you mean --version? `titokctl --help` lists its arguments and options",
        ),
        ("recipes ls --jsn", "no such option: --jsn", "did you mean --json? `titokctl recipes ls --help` lists"),
        (
            "recipes ls more",
            "got unexpected extra argument",
            "`titokctl recipes ls --help` lists its arguments and options",
        ),
        (
            "recipes cp tokenizer/tiny",
            "missing argument 'FILE'",
            "`titokctl recipes cp --help` lists its arguments and options",
        ),
        ("recipes show tinny", "no recipe named 'tinny'", "did you mean tiny"),
    ],
)
def test_wrong_arguments_give_one_sentence_a_hint_and_code_2(run_cli, words, error, hint):
    result = run_cli(*words.split(), code=2)
    assert result.stdout == ""
    first, second = result.stderr.splitlines()
    assert first.startswith(f"error: {error}")
    assert second.startswith(f"hint: {hint}")


FAILING = """
@app.command()
def fail(size: int = 1):
    from titokctl.errors import UserError
    raise {error}
"""


@pytest.mark.parametrize(
    ("error", "code", "first", "second"),
    [
        ("UserError('no [bold] images', 'look [there]')", 1, "error: no [bold] images", "hint: look [there]"),
        ("UserError('bad words', exit_code=2)", 2, "error: bad words", None),
        ("ValueError('odd')", 1, "error: unexpected ValueError: odd", "hint: `titokctl --debug ...`"),
        ("MemoryError()", 1, "error: out of memory", "hint: use a smaller batch"),
        ('RuntimeError("DefaultCPUAllocator: can\'t allocate memory")', 1, "error: out of memory", "hint: use"),
        ("BrokenPipeError('a worker died')", 1, "error: unexpected BrokenPipeError: a worker died", "hint: "),
    ],
)
def test_errors_have_one_form_and_no_traceback(python, error, code, first, second):
    done = in_process(python, FAILING.format(error=error), words="fail")
    lines = done.stderr.splitlines()
    assert done.returncode == code
    assert done.stdout == ""
    assert lines[0] == first
    assert len(lines) == (2 if second else 1)
    assert lines[-1].startswith(second or first)


@pytest.mark.parametrize("words", ["--debug fail", "fail"])
def test_debug_shows_the_traceback(python, words):
    done = in_process(python, FAILING.format(error="ValueError('odd')"), words=words)
    assert ("Traceback" in done.stderr) == ("--debug" in words)
    assert done.returncode == 1


def test_a_value_of_the_wrong_type_is_a_usage_error(python):
    done = in_process(python, FAILING.format(error="ValueError"), words="fail --size big")
    assert done.returncode == 2
    assert done.stderr.startswith("error: invalid value for '--size'")
    assert "hint: `titokctl fail --help` lists its arguments and options" in done.stderr


WORKING = """
@app.command()
def work():
    import time
    from titokctl.distributed.stop import StopRequest
    with StopRequest() as stop:
        print("ready", flush=True)
        while not stop.requested:
            time.sleep(0.01)
        stop.check("step 3 is saved.")

@app.command()
def wait():
    import time
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("words", "number", "code", "said"),
    [
        ("work", signal.SIGINT, 130, "stopped. step 3 is saved. To resume, run the same command again.\n"),
        ("work", signal.SIGTERM, 75, "stopped. step 3 is saved. To resume, run the same command again.\n"),
        ("work", signal.SIGUSR1, 75, "stopped. step 3 is saved. To resume, run the same command again.\n"),
        ("wait", signal.SIGINT, 130, "interrupted.\n"),
    ],
)
def test_signals_end_a_command_with_their_code(start, python, words, number, code, said):
    # A shell ignores Ctrl-C in background jobs, and child processes inherit that.
    script = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    script += f"import sys\nfrom titokctl.cli.app import app, run\n{WORKING}\nsys.exit(run([{words!r}]))"
    process = start([python, "-c", script], env=environment())
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code
    assert err == said


@pytest.mark.parametrize("words", [("--help",), ("--version",), ("recipes", "ls"), ("recipes", "ls", "--json")])
def test_a_closed_pipe_is_not_an_error(python, words):
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [python, *COMMAND, *words], stdout=write, stderr=subprocess.PIPE, env=environment(), timeout=PATIENCE_S
        )
    finally:
        os.close(write)
    assert done.returncode == 0
    assert done.stderr == b""


def test_pipes_get_plain_text(run_cli):
    for words in (("--help",), ("recipes", "ls"), ("recipes", "show", "tinny"), ("recipes", "check", "--bad")):
        result = run_cli(*words)
        assert "\x1b" not in result.stdout + result.stderr
        assert "\r" not in result.stdout + result.stderr


def test_a_terminal_gets_colour_unless_no_color_is_set(python):
    code, shown = on_a_terminal(python, "recipes", "show", "tinny")
    assert code == 2
    assert COLOUR.search(shown)
    code, shown = on_a_terminal(python, "recipes", "show", "tinny", NO_COLOR="1")
    assert code == 2
    assert b"error: " in shown
    assert not COLOUR.search(shown)


@pytest.mark.parametrize("words", [("--help",), ("recipes", "ls"), ("recipes", "show", "tinny")])
def test_nothing_is_wider_than_the_terminal(python, words):
    _, shown = on_a_terminal(python, *words, NO_COLOR="1")
    plain = re.sub(rb"\x1b\[[\d;]*m", b"", shown).decode()
    assert max(len(line) for line in plain.splitlines()) <= 80


def test_python_m_titokctl_is_the_same_command(run_cli):
    import tomllib

    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert scripts == {"titokctl": "titokctl.__main__:main"}
    start = "import sys; sys.argv = ['titokctl', '--version']; from titokctl.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", start], env=environment(), capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0
    assert done.stdout == run_cli("--version").stdout


def test_stdout_holds_only_the_json(run_cli):
    result = run_cli("recipes", "ls", "--json", code=0)
    assert json.loads(result.stdout) == result.json
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("name", "package", "words"),
    [
        ("SIGTERM", "torch", "decode ids.h5 -o out.npz"),
        ("SIGUSR1", "torch", "decode ids.h5 -o out.npz"),
        ("SIGTERM", "typer", "decode ids.h5 -o out.npz"),
        ("SIGTERM", "torch", "tokenize /usr -o t.h5 --procs 2"),
    ],
)
def test_a_signal_while_packages_are_loaded_is_a_stop(name: str, package: str, words: str, tmp_path: Path) -> None:
    code = f"""
import os, signal, sys
from titokctl.__main__ import main

class Killer:
    def find_spec(self, module, *_):
        if module == "{package}":
            os.kill(os.getpid(), signal.{name})

sys.meta_path.insert(0, Killer())
sys.argv = ["titokctl", *"{words}".split()]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (75, "")
    assert done.stderr == "stopped before any work was begun. Run the same command again.\n"
    assert not list(tmp_path.iterdir())


def test_errors_are_json_on_stdout_for_a_caller_who_asked_for_json(run_cli, tmp_path):
    missing = run_cli("inspect", tmp_path / "nothing.h5", "--json", code=1)
    found = json.loads(missing.stdout)
    assert found["exit_code"] == 1
    assert f"error: {found['error']}" in missing.stderr
    wrong = run_cli("inspect", "--json", "--nothing", code=2)
    assert json.loads(wrong.stdout)["error"] == "no such option: --nothing"


def test_flags_are_shown_without_a_type(run_cli):
    for words in (("train-gen",), ("runs", "prune")):
        lines = run_cli(*words, "--help", code=0).stdout.splitlines()
        flags = [line for line in lines if "--dry-run" in line or "--json" in line]
        assert len(flags) >= 2
        assert not [line for line in flags if "bool" in line.lower()]
