"""The options of all commands: their groups and names, what is misspelt, --quiet, completion."""

import logging
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lora_np import cli, selfcheck, write_adapter
from lora_np.cli.parsing import OUTPUT, leaves
from lora_np.cli.says import QUIET, heard, listen
from lora_np.finetune.terminal import TrainingBar
from lora_np.progress import log, shows_bars
from tests.cli.test_cli import case

COMMANDS = {command.prog.removeprefix("lora-np "): command for command in leaves(cli.parser())}
NAMED = {"N", "R", "K"}  # a count, a rank, how many of the likeliest tokens
PATHS = {"FILE", "DIR", "PATH", "ADAPTER"}
SHORT = 8  # options that need no groups: beside -h, --quiet and --format


def options(command):
    """Yield the options of a command that are its own."""
    for action in command._actions:
        if action.dest not in ("help", "quiet", "format"):
            yield action


every_command = pytest.mark.parametrize("name", COMMANDS)


@every_command
def test_a_count_is_N_a_rate_LR_and_a_path_says_what_it_is(name):
    for action in options(COMMANDS[name]):
        place = (name, action.dest)
        if action.type is int:
            assert action.metavar in NAMED, place
        if action.dest == "lr" or action.dest.endswith("_lr"):
            assert (action.type, action.metavar) == (float, "LR"), place
        if action.type is Path:
            assert action.metavar in PATHS, place
        if action.nargs != 0 and action.choices is None:
            assert action.metavar, place  # argparse's own repeats the name in capitals


@every_command
def test_a_command_with_many_options_has_them_in_groups(name):
    command = COMMANDS[name]
    own = list(options(command))
    grouped = [a for group in command.groups.values() for a in group._group_actions]
    assert len(own) <= SHORT or all(action in grouped for action in own)
    assert all(group._group_actions for group in command.groups.values())
    out = [group.title for group in command.groups.values() for a in group._group_actions
           if a.dest in ("jobs", "take_over")]  # fmt: skip
    assert set(out) <= {OUTPUT}


@every_command
def test_every_command_can_be_quiet_and_says_what_that_is(name):
    (quiet,) = [a for a in COMMANDS[name]._actions if a.dest == "quiet"]
    assert (quiet.option_strings, quiet.default, quiet.help) == (["--quiet"], False, QUIET)


# -------------------------------------------------------------------------------- misspelt


def refused(line, capsys):
    """What the parser says of a line: one line, and exit status 2."""
    with pytest.raises(SystemExit, match="2"):
        cli.main(shlex.split(line))
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize(
    "line, said",
    [
        ("resize a --rnak 4 --out b", "lora-np resize: no option --rnak: did you mean --rank?"),
        ("resize a --rnak=4", "lora-np resize: no option --rnak: did you mean --rank?"),
        ("images sample --promt A", "images sample: no option --promt: did you mean --prompt?"),
        ("--vresion", "lora-np: no option --vresion: did you mean --version?"),
        ("analyze a --fromat json", "did you mean --format"),
        ("sweeep --quick", "'sweeep': did you mean sweep?"),
        ("images sampel", "'sampel': did you mean sample?"),
        ("resize a --xyzzy", "lora-np resize: no option --xyzzy; see lora-np resize --help"),
        ("account more", "lora-np account: unexpected: more"),
        ("analyse a --format xml", "expected one of table, json, csv, markdown"),
    ],
)
def test_what_is_misspelt_names_the_nearest(line, said, capsys):
    assert said in refused(line, capsys)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_option_with_two_letters_exchanged_is_recognised(name, capsys):
    for option in (o for a in options(COMMANDS[name]) for o in a.option_strings if len(o) > 6):
        wrong = option[:3] + option[4] + option[3] + option[5:]
        if wrong != option and not any(
            o.startswith(wrong) for o in COMMANDS[name]._option_string_actions
        ):
            assert option in refused(f"{name} {wrong}", capsys)


def test_what_only_looks_misspelt_is_taken():
    parse = cli.parser().parse_args
    assert parse(["analyse", "a", "--form", "csv"]).format == "csv"  # the beginning of one option
    assert parse(["images", "distil", "--base", "b", "--out", "o", "--lr", "-5e-1"]).lr == -0.5
    assert parse(["generate", "--run", "r", "--prompt=--x"]).prompt == "--x"
    assert parse(["generate", "--run", "r", "--prompt", "-- a comment"]).prompt == "-- a comment"
    assert parse(["analyse", "--", "--odd"]).path == Path("--odd")


# ----------------------------------------------------------------------------------- quiet


@pytest.fixture
def adapter(tmp_path, monkeypatch):
    """A folder to work in that holds an adapter, ``a``."""
    monkeypatch.chdir(tmp_path)
    write_adapter("a", [("q", np.diag([2.0, 1.0, 0.1]), np.eye(3, 5), 1.0)])
    return "a"


def test_quiet_leaves_the_results_and_drops_the_notes(adapter, command):
    said = {}
    for name, more in (("loud", ()), ("quiet", ("--quiet",))):
        status, said[name], err = command("resize", adapter, "--rank", 2, "--out", name, *more)
        assert (status, err) == (0, "")
    assert said["loud"] == f"{said['quiet']}written to loud/\n" and "as written" in said["quiet"]


def test_in_another_format_notes_go_to_standard_error_and_quiet_drops_them(adapter, command):
    status, _, err = command("resize", adapter, "--rank", 2, "--out", "b", "--format", "json")
    assert status == 0 and err.endswith("written to b/\n")
    more = ("--format", "json", "--quiet")
    assert command("resize", adapter, "--rank", 2, "--out", "c", *more)[2] == ""


def test_quiet_keeps_errors_and_the_exit_status(command, monkeypatch):
    status, out, err = command("resize", "nowhere", "--rank", 2, "--out", "b", "--quiet")
    assert (status, out) == (2, "") and err == "lora-np: nowhere does not exist\n"
    monkeypatch.setattr(selfcheck, "cases", lambda rng: [case("a pair")])
    assert command("gradcheck", "--quiet")[1].endswith("all gradients agree\n")


def on_a_screen(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)


@pytest.mark.parametrize("quiet", [False, True])
def test_quiet_shows_neither_bars_nor_lines_of_progress(quiet, capsys, monkeypatch):
    on_a_screen(monkeypatch)
    with heard(SimpleNamespace(quiet=quiet, format="table")):
        assert shows_bars() is not quiet
        listen("training")
        log.warning("a font\nis missing")
    err = "" if quiet else "training ...\n"
    assert capsys.readouterr() == ("", f"{err}lora-np: warning: a font is missing\n")


def test_off_a_screen_an_epoch_is_a_line_for_the_logger(caplog, monkeypatch):
    history = SimpleNamespace(loss=[1.25], validation=[])
    training = SimpleNamespace(
        trainer=SimpleNamespace(position=0),
        steps_in_epoch=2,
        settings=SimpleNamespace(epochs=3),
        epochs=SimpleNamespace(samples=lambda step: ["abc"]),
        history=history,
    )
    with caplog.at_level(logging.INFO, "lora_np"), TrainingBar(training) as bar:
        for training.trainer.position in (1, 2):
            bar(training)
    (record,) = caplog.records
    assert record.name == "lora_np"
    assert record.getMessage().startswith("epoch 1 of 3: loss 1.250, ")


def test_the_library_alone_says_nothing_and_the_command_leaves_its_logger_as_it_was(
    adapter, command, capsys
):
    log.info("to nobody")
    before = log.level, list(log.handlers)
    command("resize", adapter, "--rank", 2, "--out", "b", "--quiet")
    assert (log.level, log.handlers) == before
    assert [type(handler) for handler in log.handlers] == [logging.NullHandler]
    assert capsys.readouterr() == ("", "")


# ------------------------------------------------------------------------------ completion


def test_without_shtab_completion_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    said = refused("--print-completion bash", capsys)
    assert "needs the package shtab: pip install 'lora_np[complete]'" in said


def test_completion_is_printed_for_the_shell_and_completes_paths(monkeypatch, capsys):
    asked = []
    fake = SimpleNamespace(
        FILE="files",
        DIRECTORY="folders",
        complete=lambda parser, shell: asked.append((parser, shell)) or "the script",
    )
    monkeypatch.setitem(sys.modules, "shtab", fake)
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--print-completion", "zsh"])
    assert capsys.readouterr() == ("the script\n", "")
    ((parser, shell),) = asked
    assert (parser.prog, shell) == ("lora-np", "zsh")
    (sweep,) = [command for command in leaves(parser) if command.prog == "lora-np sweep"]
    kinds = {action.dest: getattr(action, "complete", None) for action in sweep._actions}
    assert (kinds["out"], kinds["adapt_text"], kinds["steps"]) == ("folders", "files", None)
    assert "expected one of bash, zsh, tcsh" in refused("--print-completion fish", capsys)
