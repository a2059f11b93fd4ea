"""What is said on the way to a result: lines through the logger ``lora_np``, and bars on a screen.

A program that wants to hear the lines asks for them as of any library, and one that wants neither
lines nor bars raises the level::

    logging.basicConfig(level=logging.INFO)
    logging.getLogger("lora_np").setLevel(logging.WARNING)

The command line shows both, and ``--quiet`` raises the level.
"""

from __future__ import annotations

import logging
import sys

log = logging.getLogger("lora_np")
log.addHandler(logging.NullHandler())


def shows_bars() -> bool:
    """Return whether a bar is seen: on a screen, unless the logger's level is above INFO.

    Examples
    --------
    >>> import logging
    >>> from lora_np.progress import shows_bars
    >>> log, before = logging.getLogger("lora_np"), logging.getLogger("lora_np").level
    >>> log.setLevel(logging.WARNING)
    >>> shows_bars()
    False
    >>> log.setLevel(before)
    """
    return sys.stderr.isatty() and log.level <= logging.INFO
