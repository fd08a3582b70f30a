"""Lets one image kill every process that decodes it, as a fault in a decoder written in C does.

Python imports this when it starts with this folder in PYTHONPATH; processes below it inherit that. An image is deadly
if its file holds the comment TITOKCTL_TESTS_DEADLY.
"""

import os
import signal

from PIL import ImageFile

_begin = ImageFile.ImageFile.__init__


def _begin_or_die(self, fp=None, filename=None):
    if hasattr(fp, "getvalue") and b"TITOKCTL_TESTS_DEADLY" in fp.getvalue():
        os.kill(os.getpid(), signal.SIGKILL)
    _begin(self, fp, filename)


ImageFile.ImageFile.__init__ = _begin_or_die
