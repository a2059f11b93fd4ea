"""Compile the modules of wheels, so that a browser need not: run by Pyodide's own Python.

``lite.py`` runs this file in Pyodide, under Node, on the wheels of the site. A module becomes a .pyc
file, which Python reads several times faster than it compiles the source. What a reader of the
course never imports is left out: tests, sample data, headers, stubs for other tools, and fonts that
neither figures nor the letters of chapter 15 use.
"""

import marshal
import re
import zipfile
from importlib.util import MAGIC_NUMBER, source_hash
from pathlib import Path

UNCHECKED = 0b01  # a .pyc file is valid whatever its source's time says (PEP 552)
# Large, and hardly imported; and lora_np, whose sources students read.
AS_THEY_ARE = ("jedi", "pygments", "lora_np")
LEFT_OUT = re.compile(
    r"/tests/|/sample_data/|^jedi/third_party/(django-stubs|typeshed/third_party)/"
    r"|^(numpy|scipy|matplotlib)/.*\.(h|pxd|pyi|a)$"
    r"|^matplotlib/mpl-data/fonts/(afm|pdfcorefonts)/"
    r"|^matplotlib/mpl-data/fonts/ttf/DejaVuS(erif|ansMono)-?(Display|BoldItalic|BoldOblique)"
)


def compiled(source: bytes, name: str) -> bytes:
    """Return the contents of the .pyc file of a module."""
    code = compile(source, name, "exec", dont_inherit=True, optimize=0)
    return (
        MAGIC_NUMBER + UNCHECKED.to_bytes(4, "little") + source_hash(source) + marshal.dumps(code)
    )


def compile_wheel(path: Path) -> None:
    """Write a wheel again, with compiled modules in place of their sources."""
    with zipfile.ZipFile(path) as wheel:
        files = {name: wheel.read(name) for name in wheel.namelist() if not LEFT_OUT.search(name)}
    as_it_is = path.name.startswith(AS_THEY_ARE)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as wheel:
        for name, content in files.items():
            if name.endswith(".py") and not as_it_is:
                name, content = f"{name}c", compiled(content, name)
            wheel.writestr(name, content)


for path in sorted(Path("/wheels").glob("*.whl")):
    compile_wheel(path)
