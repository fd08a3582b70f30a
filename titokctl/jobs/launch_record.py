"""The record of one start of a command in run.json: its words, machine and processes, and the code that ran.

The fields are those that the specification in formats/run_folder.py names; what is unknown is left out. They identify a
machine and its user, so nothing that is shared contains them.
"""

import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from titokctl.context import Context
from titokctl.formats.checkout import commit_of, is_changed
from titokctl.formats.remote_file import shown
from titokctl.jobs.machine.hardware import driver, processor

_CODE = Path(__file__).resolve().parents[2]
_LONGEST_WORD = 4096  # bytes of an argument of the command line that are kept
_MOST_WORDS = 1000


def launch_record(context: Context) -> dict[str, Any]:
    """Return the record of this start. Every process of the group calls this and gets the same hosts and devices."""
    where = [platform.node(), _device(context.device)]
    hosts, devices = (list(dict.fromkeys(names)) for names in zip(*context.group.from_all(where), strict=True))
    facts = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _command(),
        "processes": context.group.world_size,
        "hosts": [host for host in hosts if host],
        "devices": devices,
        "driver": driver() if context.device.startswith("cuda") else None,
        "commit": commit_of(_CODE),
        "changed": is_changed(_CODE),
    }
    return {name: value for name, value in facts.items() if value is not None and value != []}


def _command() -> list[str]:
    """Return the words of the command line, without user names, passwords and signatures in URLs."""
    program, *words = sys.argv or [""]
    name = "titokctl" if Path(program).name in ("titokctl", "__main__.py") else program
    return [name, *(_without_secrets(word)[:_LONGEST_WORD] for word in words[:_MOST_WORDS])]


def _without_secrets(word: str) -> str:
    option, is_option, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return option + is_option + shown(value)


def _device(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    return processor() if device == "cpu" else device
