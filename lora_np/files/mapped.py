"""The bytes of an open file in memory, where the system reads them when they are used."""

from __future__ import annotations

import errno
import mmap
import os
from typing import BinaryIO

CANNOT_MAP = (errno.ENODEV, errno.ENOSYS, errno.EOPNOTSUPP)


def mapped(file: BinaryIO) -> mmap.mmap:
    """Return the bytes of an open file, which stay where they are.

    Some file systems cannot map a file, such as the folder of a notebook in a browser: there the
    bytes are read.

    Parameters
    ----------
    file : file
        Open to read bytes; at any place.

    Returns
    -------
    mmap.mmap
        Stays valid after `file` is closed.

    Raises
    ------
    OSError
        If the file can neither be mapped nor read.
    ValueError
        If it is empty.
    """
    try:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        if error.errno not in CANNOT_MAP:
            raise
    copy = mmap.mmap(-1, os.fstat(file.fileno()).st_size)
    file.seek(0)
    file.readinto(copy)  # type: ignore[attr-defined]
    return copy
