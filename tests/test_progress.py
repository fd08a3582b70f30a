"""Progress: plain lines in a log, a bar on a terminal, nothing when silent."""

import io
import os
import pty
import re
import subprocess
import sys
import termios

from command_line import PATIENCE_S

from titokctl.progress import QuietProgress, SilentProgress, StderrProgress

WORK = """
from titokctl.progress import StderrProgress
progress = StderrProgress(line_every=0.0)
progress.start("training", 3, unit="steps", done=1)
progress.advance(1, "loss 0.5")
progress.say("a remark")
progress.advance(1)
progress.close()
progress.close()
"""


def test_a_log_gets_plain_lines():
    done = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[0].startswith("training: 2/3 steps, ")
    assert "steps/s" in lines[0]
    assert " left" in lines[0]
    assert lines[0].endswith("loss 0.5")
    assert lines[1] == "a remark"
    assert "3/3 steps" in lines[-1]
    assert "took" in lines[-1]
    assert not any(mark in done.stderr for mark in "\r\x1b")


def on_a_terminal(program: str) -> bytes:
    """Run a program whose stderr is a terminal of 80 columns, and return what it shows there."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "TERM")}
    process = subprocess.Popen(
        [sys.executable, "-c", program], stderr=theirs, stdout=subprocess.PIPE, text=True, env=environment
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
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out) == (0, "")
    return shown


def test_a_terminal_gets_a_bar():
    shown = on_a_terminal(WORK)
    assert b"\rtraining:" in shown
    assert b"a remark" in shown
    assert b"loss 0.5" in shown
    assert b"3/3" in shown


MESSAGES = """
from titokctl.cli import console
path = "runs/tokenizer/a-name-of-a-run/rejected.jsonl"
console.progress(False).warn(f"5 of 285 images of this folder can't be used: {path}")
console.say(f"5 of 285 images of this folder can't be used: {path}")
console.error(f"there is nothing that could be read as an image in this folder: {path}", f"move the files: mv {path} x")
console.next_command("reconstruct", "a folder/", "--tokenizer", "runs/tokenizer/tiny-1823e62d", "-o", path, shown=True)
"""


def test_no_message_on_a_terminal_is_folded_inside_a_name():
    """Lines are broken between words, and those of a command end with backslashes, so that a shell takes it."""
    lines = re.sub("\x1b\\[[0-9;]*m", "", on_a_terminal(MESSAGES).decode()).splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("runs/tokenizer/a-name-of-a-run/rejected.jsonl" in line for line in lines) == 5
    told = lines[[line.startswith("next: ") for line in lines].index(True) :]
    command = "\n".join(told).removeprefix("next: titokctl ")
    words = subprocess.check_output(["sh", "-c", f"printf '%s\\n' {command}"], text=True).splitlines()
    path = "runs/tokenizer/a-name-of-a-run/rejected.jsonl"
    assert words == ["reconstruct", "a folder/", "--tokenizer", "runs/tokenizer/tiny-1823e62d", "-o", path]


STOPPED = """
import sys
from titokctl.cli.app import app, run

@app.command()
def work():
    from titokctl.cli.work import Surroundings, context
    from titokctl.errors import Stopped
    with context(Surroundings()) as found:
        found.progress.start("training", 60)
        found.progress.advance(29, "step 29, loss 0.5, " + "grad_norm 1.2, " * 20)
        raise Stopped(130, "Step 29 is saved.")

sys.exit(run(["work"]))
"""


def test_a_stop_is_reported_below_the_bar_which_fits_the_terminal():
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    process = subprocess.Popen([sys.executable, "-c", STOPPED], stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:  # the other end of the terminal is closed
        pass
    finally:
        os.close(ours)
    assert process.wait(timeout=PATIENCE_S) == 130
    *bar, told, end = shown.decode().split("\r\n")
    assert (told, end) == ("stopped. Step 29 is saved. To resume, run the same command again.", "")
    last = "\r".join(bar).split("\r")[-1]
    assert last.startswith("training: 48%, ")
    assert "left, step 29, loss 0.5, grad_norm" in last, "the end and the loss have room, whatever else is cut off"
    assert len(last) <= 80


def test_plain_lines_are_rare():
    log = io.StringIO()
    progress = StderrProgress(log, line_every=3600)
    progress.start("reading", None)
    for _ in range(1000):
        progress.advance()
    assert log.getvalue() == ""
    progress.start("writing", 5)
    assert log.getvalue().startswith("reading: 1,000 images, ")
    assert len(log.getvalue().splitlines()) == 1


def test_silence(capsys):
    progress = SilentProgress()
    progress.start("reading", 3)
    progress.advance(3, "note")
    progress.say("text")
    progress.warn("loud")
    progress.close()
    assert capsys.readouterr() == ("", "")


def test_quiet_progress_shows_warnings(capsys):
    for progress in (QuietProgress(), StderrProgress()):
        progress.warn("3 images were left out")
        assert capsys.readouterr() == ("", "warning: 3 images were left out\n")
    QuietProgress().say("text")
    assert capsys.readouterr() == ("", "")
