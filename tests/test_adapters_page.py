"""docs/adapters.md: its files can be made, its commands run, and print what the page shows."""

import re
from pathlib import Path

import pytest

from lora_np import cli

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")
MAKE = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
SHOWN = re.findall(r"```console\n\$ lora-np (.*)\n((?:.*\n)*?)```", PAGE)
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]\d+)?")
LAST_DIGITS = 0.01  # relative: another BLAS may round the last digit shown otherwise


def test_the_page_shows_what_its_commands_print(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert MAKE and len(SHOWN) == 7
    exec(compile(MAKE[1], "adapters.md", "exec"), {})
    for command, expected in SHOWN:
        assert cli.main(command.split()) == 0
        said = capsys.readouterr().out
        assert NUMBER.sub("#", said) == NUMBER.sub("#", expected)
        found, shown = ([float(x) for x in NUMBER.findall(text)] for text in (said, expected))
        assert found == pytest.approx(shown, rel=LAST_DIGITS, abs=1e-9)
