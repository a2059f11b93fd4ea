"""Adapters on disk, read into the pool when a request needs them.

Thousands of adapters may lie on disk; those that are in memory are the ones in use, and as many of
the others as the pool has room for. When room is needed, the least recently used adapter that no
request is using goes first.
"""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.adapters import AdapterReader
from lora_np.adapters.file import CONFIG, TENSORS
from lora_np.files import CheckpointError
from lora_np.methods.stacked import Factors
from lora_np.methods.table import hint
from lora_np.reading import folder_name, shown
from lora_np.serve.pool import Lease, Pool

Stamp = tuple[tuple[int, int, int], ...]  # of each file: what changes when it is written
Pairs = dict[str, tuple[np.ndarray, np.ndarray]]  # A (r, in) and B (out, r) by a layer's path


class Loaded:
    """An adapter in the pool.

    Parameters
    ----------
    name : str
    number : int
        Each reading of a folder has a number of its own.
    stamp : tuple
        Of the files that were read; another stamp means that they have changed.
    pool : Pool
    lease : Lease
        Pages of the pool, into which the factors are copied.
    factors : dict of str to (B, A, scale)
        By the path of the adapted layer.

    Attributes
    ----------
    size : int
        How many numbers it has.
    users : int
        How many running requests hold it.
    scales : dict of str to float
        By the path of the adapted layer.
    """

    def __init__(
        self,
        name: str,
        number: int,
        stamp: Stamp,
        pool: Pool,
        lease: Lease,
        factors: dict[str, Factors],
    ) -> None:
        self.name, self.number, self.stamp, self.lease = name, number, stamp, lease
        self.users = 0
        self.size = sum(B.size + A.size for B, A, _ in factors.values())
        self.scales = {path: float(scale) for path, (_, _, scale) in factors.items()}
        self._pool, self._moves = pool, -1
        self._shapes = {path: (A.shape, B.shape) for path, (B, A, _) in factors.items()}
        self._pairs: Pairs = {}
        for path, (A, B) in self.pairs().items():
            B[...], A[...], _ = factors[path]

    def pairs(self) -> Pairs:
        """Return A and B of each adapted layer: views of the pool, valid until it moves leases."""
        if self._moves != self._pool.moves:
            numbers, at, self._pairs = self.lease.numbers, 0, {}
            for path, (of_A, of_B) in self._shapes.items():
                middle, end = at + math.prod(of_A), at + math.prod(of_A) + math.prod(of_B)
                A, B = numbers[at:middle].reshape(of_A), numbers[middle:end].reshape(of_B)
                self._pairs[path], at = (A, B), end
            self._moves = self._pool.moves
        return self._pairs


class Adapters:
    """Folders of adapters by name, and those of them that are in the pool.

    An adapter's name is that of its folder. A folder is looked at when a request asks for it: if
    its files have changed since, they are read again, and requests that run go on with what they
    hold.

    Parameters
    ----------
    base : LanguageModel
        A plain model.
    pool : Pool
    folders : iterable of str or Path
        In PEFT's format; LoRA of linear layers.

    Attributes
    ----------
    pages : int
        How many pages of the pool adapters hold.
    reads : int
        How many times an adapter was read from its folder.

    Raises
    ------
    CheckpointError
        If two folders have one name.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np import Llama, LlamaConfig, LoraConfig, inject, save_adapter
    >>> from lora_np.serve.adapters import Adapters
    >>> from lora_np.serve.pool import Pool
    >>> rng = np.random.default_rng(0)
    >>> base = Llama(LlamaConfig(9, 8, 1, 1, 1, d_model=4, d_hidden=6), rng)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_adapter(inject(base, LoraConfig(r=2), rng), f"{folder}/sql")
    ...     adapters = Adapters(base, Pool(20, 8), [f"{folder}/sql"])
    ...     held = adapters.hold("sql")
    >>> adapters.names, held.users, adapters.pages
    (['sql'], 1, 4)
    """

    def __init__(self, base: Any, pool: Pool, folders: Iterable[str | Path] = ()) -> None:
        self._reader, self._pool = AdapterReader(base), pool
        self._folders: dict[str, Path] = {}
        self._loaded: OrderedDict[str, Loaded] = OrderedDict()  # the last used is last
        self._sizes: dict[str, int] = {}  # pages of the adapters that were read once
        self.reads = 0
        self.pages, self._idle = 0, 0  # of all in the pool, and of those that nobody uses
        for folder in folders:
            self.add(folder)

    @property
    def names(self) -> list[str]:
        """The names of all adapters."""
        return list(self._folders)

    @property
    def loaded(self) -> int:
        """How many adapters are in the pool; older versions that are still in use do not count."""
        return len(self._loaded)

    def add(self, folder: str | Path) -> str:
        """Add an adapter's folder and return its name; nothing is read yet.

        A second folder of the same name raises CheckpointError.
        """
        folder = Path(folder)
        name = folder_name(folder)
        if name in self._folders:
            raise CheckpointError(
                f"two adapters are called {shown(name)}: {folder} and {self._folders[name]}; "
                "rename a folder"
            )
        self._folders[name] = folder
        return name

    def remove(self, name: str) -> None:
        """Forget an adapter, or raise ValueError if it is unknown; who holds it may go on."""
        self.expect(name)
        del self._folders[name]
        self._sizes.pop(name, None)
        self._drop(name)

    def expect(self, name: str) -> None:
        """Raise ValueError, with the nearest names, unless there is an adapter of this name."""
        if name not in self._folders:
            known = hint(name, self._folders) if self._folders else "there are none"
            raise ValueError(f"no adapter is called {shown(name)}: {known}")

    def room_for(self, name: str | None, pages: int) -> bool:
        """Whether to hold an adapter for so many pages: both fit now, or never will.

        An adapter that was never read counts as one page.
        """
        own = 0 if name is None else self._sizes.get(name, 1)
        held = None if name is None else self._loaded.get(name)
        missing = pages if held is not None and held.users else pages + own
        return missing <= self._pool.free + self._idle or pages + own > self._pool.pages

    def hold(self, name: str) -> Loaded | None:
        """Return an adapter for one more user, or None if the pool has no room for it.

        It is read from its folder if it is not in memory or its files have changed.

        Raises
        ------
        CheckpointError
            If the folder has vanished, is broken, or does not fit the base or the pool.
        ValueError
            If there is no adapter of this name.
        """
        self.expect(name)
        stamp, held = self._stamp(name), self._loaded.get(name)
        if held is None or held.stamp != stamp:
            held = self._read(name, stamp)
        if held is not None:
            self._loaded.move_to_end(name)
            self._idle -= 0 if held.users else held.lease.pages
            held.users += 1
        return held

    def release(self, held: Loaded) -> None:
        """Take back one user of an adapter; it stays in memory until its room is needed."""
        held.users -= 1
        if held.users:
            return
        self._idle += held.lease.pages
        if self._loaded.get(held.name) is not held:  # removed, or read again, in the meantime
            self._let_go(held)

    def make_room(self, pages: int) -> bool:
        """Let unused adapters go, the least recently used first; return whether pages are free.

        None goes if even all of them were not enough.
        """
        if pages > self._pool.free + self._idle:
            return False
        while self._pool.free < pages:
            self._drop(next(name for name, held in self._loaded.items() if not held.users))
        return True

    def _drop(self, name: str) -> None:
        """Forget what was read of an adapter; its users keep it until they release it."""
        held = self._loaded.pop(name, None)
        if held is not None and not held.users:
            self._let_go(held)

    def _let_go(self, held: Loaded) -> None:
        """Give back the pages of an adapter that nobody uses."""
        self._pool.give_back(held.lease)
        self._idle -= held.lease.pages
        self.pages -= held.lease.pages

    def _stamp(self, name: str) -> Stamp:
        """Return times, sizes and inodes of an adapter's files, which change if one is written."""
        folder = self._folders[name]
        try:
            found = [os.stat(folder / file) for file in (CONFIG, TENSORS)]
        except OSError as error:
            self._drop(name)
            raise CheckpointError(
                f"adapter {shown(name)}: {error.filename}: {error.strerror}"
            ) from None
        return tuple((s.st_mtime_ns, s.st_size, s.st_ino) for s in found)

    def _read(self, name: str, stamp: Stamp) -> Loaded | None:
        """Read an adapter into the pool, in place of an older version; None if there is no room."""
        self._drop(name)
        factors = self._reader.factors(self._folders[name])
        pages = self._pool.pages_for(sum(B.size + A.size for B, A, _ in factors.values()))
        self._sizes[name] = pages
        if pages > self._pool.pages:
            raise CheckpointError(
                f"adapter {shown(name)} takes {pages} pages, but the pool has {self._pool.pages}"
            )
        lease = self._pool.take(pages, at_end=True) if self.make_room(pages) else None
        if lease is None:
            return None
        self.reads += 1
        self._loaded[name] = held = Loaded(name, self.reads, stamp, self._pool, lease, factors)
        self.pages += pages
        self._idle += pages
        return held
