"""docs/adapters.md: its files can be made, its commands run, and print what the page shows."""

from lora_np import cli
from tests.docs.pages import ROOT, assert_prints, blocks, output_of_block, session

PAGE = blocks((ROOT / "docs" / "adapters.md").read_text(encoding="utf-8"))
MAKE = "\n".join(body for language, body in PAGE if language == "python")
SHOWN = [session(body) for language, body in PAGE if language == "console"]


def test_the_page_shows_what_its_commands_print(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    output_of_block(MAKE, "adapters.md", {})
    assert len(SHOWN) == 10
    for command, shown in SHOWN:
        assert cli.main(command.split()[1:]) == 0
        assert_prints(capsys.readouterr().out, shown)
