"""The names that a request may give as its model: the base, its adapters, and aliases.

An adapter's name is the name of its folder. A name is never used as a path: of what a client sends,
only the folders directly in the adapters' folder can be loaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from lora_np.adapters.file import CONFIG
from lora_np.methods.table import hint
from lora_np.reading import is_name, shown
from lora_np.serve.alias import Alias
from lora_np.serve.errors import Refusal


class Names:
    """The names that a request may give as its model.

    Parameters
    ----------
    base : str
        The base's own name.
    adapters : iterable of str
    aliases : iterable of Alias
    rng : numpy.random.Generator
        Draws an alias's adapter if a request names no user.

    Raises
    ------
    ValueError
        If two of them have one name, a name has characters that cannot be printed, or an alias
        names an adapter that does not exist.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.serve.alias import alias_of
    >>> from lora_np.serve.names import Names
    >>> names = Names("tiny", ["sql"], [alias_of("test=sql:1")], np.random.default_rng(0))
    >>> names.pick("test", None), names.pick("tiny", None), names.all()
    ('sql', None, ['tiny', 'sql', 'test'])
    """

    def __init__(
        self,
        base: str,
        adapters: Iterable[str],
        aliases: Iterable[Alias],
        rng: np.random.Generator,
    ) -> None:
        self.base, self._rng = base, rng
        self.adapters, self.aliases = dict.fromkeys(adapters), {}
        if base in self.adapters:
            raise ValueError(
                f"an adapter has the model's own name {shown(base)}: rename its folder"
            )
        for alias in aliases:
            if alias.name in self.all():
                raise ValueError(f"alias {shown(alias.name)}: the name is taken, choose another")
            for adapter, _ in alias.weights:
                if adapter != base and adapter not in self.adapters:
                    raise ValueError(
                        f"alias {shown(alias.name)}: there is no adapter {shown(adapter)}: "
                        f"{hint(adapter, self.adapters)}"
                    )
            self.aliases[alias.name] = alias
        for name in self.all():
            if not is_name(name):
                raise ValueError(
                    f"the name {shown(name)} has characters that cannot be printed: rename it"
                )

    def all(self) -> list[str]:
        """Return all names: the base's, the adapters', the aliases'."""
        return [self.base, *self.adapters, *self.aliases]

    def pick(self, name: str, user: str | None) -> str | None:
        """Return the adapter that answers for a name; None is the base alone.

        Raises
        ------
        Refusal
            If the name is unknown; the message lists the nearest ones.
        """
        if name in self.aliases:
            name = self.aliases[name].pick(user, self._rng)
        if name == self.base:
            return None
        return self.adapter(name)

    def adapter(self, name: str, field: str = "model") -> str:
        """Return the name of an adapter, or raise a Refusal of `field` with the nearest names."""
        if name not in self.adapters:
            near = hint(name[:100], self.all())
            raise Refusal(
                f"there is no model {shown(name)}: {near}",
                404,
                param=field,
                code="model_not_found",
            )
        return name

    def expect_new(self, name: str) -> None:
        """Raise Refusal if the name of a new adapter is taken by something else."""
        if name in self.adapters:
            raise Refusal(f"the adapter {shown(name)} is loaded already", param="lora_name")
        if name in self.all():
            raise Refusal(
                f"{shown(name)} is the base or an alias: rename the folder", param="lora_name"
            )

    def expect_unused(self, name: str) -> None:
        """Raise Refusal if an alias needs the adapter."""
        for alias in self.aliases.values():
            if any(adapter == name for adapter, _ in alias.weights):
                raise Refusal(
                    f"the alias {shown(alias.name)} needs the adapter {shown(name)}",
                    param="lora_name",
                )


def folders_in(root: Path) -> list[Path]:
    """Return the folders that lie directly in a folder, sorted by name, without hidden ones.

    Raises
    ------
    ValueError
        If the folder cannot be read, or is itself an adapter.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from lora_np.serve.names import folders_in
    >>> with tempfile.TemporaryDirectory() as root:
    ...     (Path(root) / "sql").mkdir()
    ...     [folder.name for folder in folders_in(Path(root))]
    ['sql']
    """
    try:
        with os.scandir(root) as entries:
            names = [e.name for e in entries if e.is_dir() and not e.name.startswith(".")]
    except OSError as error:
        raise ValueError(f"{root} cannot be read ({error.strerror}): expected a folder") from None
    if (root / CONFIG).is_file():
        raise ValueError(f"{root} is an adapter: expected the folder that holds adapters' folders")
    return [root / name for name in sorted(names)]


def folder_of(root: Path, name: str, path: str) -> Path:
    """Return the folder of an adapter that a client asks to load.

    Parameters
    ----------
    root : Path
        The adapters' folder.
    name, path : str
        What the client sent. The path is ``name``, or the whole path ``root/name``.

    Raises
    ------
    Refusal
        If the path is anything but a folder called `name` directly in `root`.

    Examples
    --------
    >>> from pathlib import Path
    >>> from lora_np.serve.errors import Refusal
    >>> from lora_np.serve.names import folder_of
    >>> try:
    ...     folder_of(Path("adapters"), "sql", "../sql")
    ... except Refusal as problem:
    ...     print(problem)
    lora_path '../sql' is not the folder 'sql' directly in the adapters' folder
    """
    if not is_name(name) or name in ("", ".", "..") or Path(name).name != name:
        raise Refusal(f"lora_name {shown(name)} is not the name of a folder", param="lora_name")
    outside = Refusal(
        f"lora_path {shown(path)} is not the folder {shown(name)} directly in the adapters' folder",
        param="lora_path",
    )
    try:
        top = Path(os.path.realpath(root))
        found = Path(os.path.realpath(top / path))  # where links lead
        if ".." in Path(path).parts or found != top / name:
            raise outside
        if not (top / name).is_dir():
            raise Refusal(
                f"there is no folder {shown(name)} in the adapters' folder", 404, param="lora_name"
            )
    except Refusal:
        raise
    except (OSError, ValueError):  # a zero byte, a lone surrogate, a name too long
        raise outside from None
    return root / name
