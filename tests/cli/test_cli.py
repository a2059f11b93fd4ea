"""lora_np.cli: the commands end to end, and one line with exit status 2 for every mistake."""

import dataclasses
import json
import multiprocessing
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import lora_np
from lora_np import cli, ops, selfcheck
from lora_np.cli import sweep, workers
from lora_np.crew import keep_memory
from lora_np.experiments.rank_sweep import LinearSettings, TextSettings, run
from lora_np.experiments.rank_sweep.text import run_text_trial
from lora_np.finetune import Settings
from tests.compare import PNG
from tests.tiny import sweep_command

REPOSITORY = Path(lora_np.__file__).parents[1]
TINY_LINEAR = shlex.split("--task linear --ranks 1,3 --seeds 1 --d-in 6 --d-out 5")


@pytest.fixture
def sweep_tiny(tiny):
    """The command of the tiny text sweep."""
    return sweep_command(tiny)


@pytest.fixture
def finished(finished):
    """The folder of the tiny text sweep, finished."""
    return finished[0]


def contents(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def one_line(said):
    """What a mistake leaves: its message, and nothing else."""
    status, out, err = said
    assert (status, out, err.count("\n")) == (2, "", 1) and err.startswith("lora-np: "), said
    return err


# ------------------------------------------------------------------------------- gradcheck


def case(name="linear", backward=ops.linear_backward):
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((3, 4)), rng.standard_normal((2, 4)), rng.standard_normal(2)
    return selfcheck.Case(name, ops.linear_forward, backward, inputs, {})


def without_the_sum_over_rows(dy, cache, need=None):
    dx, dW, _ = ops.linear_backward(dy, cache, need)
    return dx, dW, dy[0]


def test_gradcheck_prints_the_table_and_exits_0(command, monkeypatch):
    monkeypatch.setattr(selfcheck, "cases", lambda rng: [case("a pair"), case("another")])
    status, out, err = command("gradcheck", "--seed", 3)
    assert (status, err) == (0, "")
    header, *rows, last = out.splitlines()
    assert header.split()[:4] == ["pair", "or", "layer", "gradients"]
    assert [row.split("  ")[0] for row in rows] == ["a pair"] * 2 + ["another"] * 2
    assert [row.split()[-3] for row in rows] == ["central", "complex"] * 2
    assert all(float(row.split()[-2]) < float(row.split()[-1]) for row in rows)  # error, limit
    assert last == "all gradients agree"


def test_gradcheck_exits_1_and_marks_a_wrong_pair(command, monkeypatch):
    wrong = case("planted", without_the_sum_over_rows)
    monkeypatch.setattr(selfcheck, "cases", lambda rng: [case(), wrong])
    status, out, _ = command("gradcheck")
    assert status == 1 and out.splitlines()[-1] == "SOME GRADIENTS ARE WRONG"
    marked = [line.split()[0] for line in out.splitlines() if line.endswith("  WRONG")]
    assert marked == ["planted", "planted"]


# ----------------------------------------------------------------------------------- sweep


def test_a_text_sweep_writes_results_and_pictures_and_prints_the_table(
    sweep_tiny, tmp_path, command
):
    out_folder = tmp_path / "out"
    status, out, err = command(*sweep_tiny, "--out", out_folder)
    assert status == 0 and "seconds in 1 process" in err
    results = json.loads((out_folder / "results.json").read_text())
    assert results["complete"] and len(results["runs"]) == 6
    for name in ("rank_vs_loss.png", "spectrum.png"):
        assert (out_folder / name).read_bytes().startswith(PNG)
    lines = [line.split() for line in out.splitlines()]
    labels = [line[:3] if line[0] == "r" else line[:1] for line in lines[1:5]]
    assert labels == [["base"], ["r", "=", "1"], ["r", "=", "2"], ["full"]]
    assert lines[4][-2:] == ["100", "%"]
    named = f"written to {out_folder}/: results.json, rank_vs_loss.png, spectrum.png"
    assert out.splitlines()[-2:] == ["base: pretrained here", named]


@pytest.mark.usefixtures("unpainted")
def test_a_given_base_is_copied_and_the_screen_says_so(sweep_tiny, finished, tmp_path, command):
    arguments = [*sweep_tiny, "--out", tmp_path / "out", "--base", finished]
    before = contents(finished)
    for _ in range(2):  # the second call runs nothing, and says it again
        status, out, _ = command(*arguments)
        assert status == 0 and f"base: copied from {finished}" in out.splitlines()
    assert contents(finished) == before


def test_a_second_call_runs_nothing_again(sweep_tiny, finished, tmp_path, command, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    before = (folder / "results.json").read_bytes()
    monkeypatch.setitem(run.TRIALS, "text", None)  # calling it would be an error
    (folder / "spectrum.png").unlink()
    status, out, err = command(*sweep_tiny, "--out", folder)
    assert (status, err) == (0, "")  # nothing is announced, since nothing is run
    assert "of full's gain" in out
    assert (folder / "results.json").read_bytes() == before
    assert (folder / "spectrum.png").read_bytes().startswith(PNG)  # drawn anew


@pytest.mark.usefixtures("unpainted")
def test_a_linear_sweep_in_two_processes_sits_on_the_floor(tmp_path, command):
    arguments = [*TINY_LINEAR, "--steps", 1000, "--jobs", 2, "--out", tmp_path / "out"]
    status, out, err = command("sweep", *arguments)
    assert status == 0 and "in 2 processes" in err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    adapted = [r for r in results["runs"] if r["rank"]]
    assert [r["rank"] for r in adapted] == [1, 3]
    assert all(r["validation_loss"] == pytest.approx(r["floor"], rel=0.01) for r in adapted)
    assert out.splitlines()[0].endswith("floor")


@pytest.mark.usefixtures("unpainted")
def test_without_out_the_folder_is_named_after_the_settings(tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for steps in (20, 30):
        assert command("sweep", *TINY_LINEAR, "--steps", steps, "--jobs", 1)[0] == 0
    folders = sorted((tmp_path / "runs").iterdir())
    assert len(folders) == 2 and all(f.name.startswith("linear-") for f in folders)
    found = {json.loads((f / "results.json").read_text())["settings"]["steps"] for f in folders}
    assert found == {20, 30}


@pytest.mark.parametrize("settings", [TextSettings(), LinearSettings()], ids=["text", "linear"])
def test_any_two_settings_have_different_folders(settings):
    other = {int: 7, float: 0.123, str: "x", tuple: (3,), type(None): "file"}
    changed = [
        dataclasses.replace(settings, **{f.name: other[type(getattr(settings, f.name))]})
        for f in dataclasses.fields(settings)
        if f.name != "method"  # of no option
    ]
    names = {sweep.folder_name(s, quick) for s in (settings, *changed) for quick in (False, True)}
    assert len(names) == 2 * (1 + len(changed))


def settings_of(*arguments):
    return sweep.sweep_settings(cli.parser().parse_args(["sweep", *arguments]))


def test_options_become_settings():
    assert settings_of() == TextSettings()
    assert settings_of("--task", "linear") == LinearSettings()
    given = settings_of("--ranks", "8,2,8", "--target-modules", "q_proj,v_proj", "--lora-lr", "1")
    assert (given.ranks, given.target_modules) == ((2, 8), ("q_proj", "v_proj"))
    assert given.lora_lr == 1.0
    quick = settings_of("--quick", "--steps", "9")
    assert (quick.steps, quick.seeds, quick.ranks) == (9, 1, (1, 4, 16))


@pytest.mark.parametrize(
    "text, targets",
    [
        ("all-linear", "all-linear"),
        ("q_proj", ("q_proj",)),
        (r".*\.(q|v)_proj", r".*\.(q|v)_proj"),
    ],
)
def test_target_modules_are_names_or_a_regular_expression(text, targets):
    assert settings_of("--target-modules", text).target_modules == targets


@pytest.mark.usefixtures("unpainted")
def test_full_fine_tuning_that_diverges_leaves_out_its_spectrum(sweep_tiny, tmp_path, command):
    folder = tmp_path / "out"
    status, out, _ = command(*sweep_tiny, "--full-lr", "1e30", "--out", folder)
    assert status == 0 and ["full", "diverged"] in [line.split() for line in out.splitlines()]
    assert out.splitlines()[-1] == f"written to {folder}/: results.json, rank_vs_loss.png"
    assert not (folder / "spectrum.png").exists()


# ------------------------------------------------------------------------------- bad input


BAD = [
    ("--ranks 0", "rank r = 0, expected a whole number from 1 to min"),
    ("--ranks 1,17", "is above the limit 16"),
    ("--target-modules k_prjo", "did you mean k_proj"),
    ("--target-modules ((", "cannot be used: missing"),
    ("--adapt-text empty", "empty is empty: pass a file that holds text"),
    ("--adapt-text short", "use a longer text or a smaller block_size"),
    ("--pretrain-text latin", "latin is not UTF-8 at byte 3"),
    ("--pretrain-text missing", "missing does not exist"),
    ("--d-in 9", "--task text has no option --d-in"),
    ("--base nowhere", "nowhere has no base: nowhere/base.json does not exist"),
    ("--device cuda", "device 'cuda' needs CuPy"),
    ("--device tpu", "device 'tpu' is unknown: choose 'cpu' or 'cuda'"),
    ("--jobs 0", "--jobs 0: expected at least 1"),
    ("--steps 0", "steps = 0, expected at least 1"),
    ("--seeds 0", "seeds = 0, expected at least 1"),
    ("--block-size 0", "block_size is 0, expected at least 1"),
    ("--n-head 3", "n_head"),
    ("--lora-lr 0", "lora_lr = 0.0, expected a positive number"),
    ("--full-lr nan", "full_lr = nan, expected a positive number"),
]


@pytest.mark.parametrize("arguments, message", BAD, ids=[arguments for arguments, _ in BAD])
def test_a_mistake_is_one_line_and_exit_2_and_nothing_is_written(
    sweep_tiny, tmp_path, command, monkeypatch, arguments, message
):
    monkeypatch.setitem(sys.modules, "cupy", None)  # as if it were not installed
    monkeypatch.chdir(tmp_path)
    files = {"empty": b"", "short": b"x" * 100, "latin": "caf\xe9 ".encode("latin-1") * 99}
    for name, content in files.items():
        Path(name).write_bytes(content)
    said = command(*sweep_tiny, "--out", "out", *arguments.split())
    assert message in one_line(said)
    assert {p.name for p in tmp_path.iterdir()} == set(files)


def test_pretraining_that_diverges_is_one_line(sweep_tiny, tmp_path, command):
    arguments = [*sweep_tiny, "--pretrain-lr", "1e30", "--out", tmp_path]
    status, _, err = command(*arguments)
    *_, last = err.splitlines()  # the first line says how long it takes
    assert status == 2 and len(err.splitlines()) == 2
    assert (
        last.startswith("lora-np: pretraining: the ") and "try a learning rate below 1e+30" in last
    )


def test_an_out_folder_that_cannot_be_written_is_one_line(sweep_tiny, tmp_path, command):
    (tmp_path / "file").write_text("in the way")
    said = command(*sweep_tiny, "--out", tmp_path / "file" / "below")
    assert "cannot be written: choose another --out" in one_line(said)
    assert (tmp_path / "file").read_text() == "in the way"


def test_results_of_other_settings_are_one_line_and_stay(sweep_tiny, finished, command):
    before = contents(finished)
    said = command(*sweep_tiny, "--out", finished, "--steps", 4)
    assert "is of other settings (steps 3, now 4): choose another --out" in one_line(said)
    assert contents(finished) == before


def test_results_that_are_garbage_are_one_line_and_stay(sweep_tiny, tmp_path, command):
    (tmp_path / "results.json").write_text("{ half a fi")
    said = command(*sweep_tiny, "--out", tmp_path)
    assert "is not the results file of a sweep" in one_line(said)
    assert (tmp_path / "results.json").read_text() == "{ half a fi"


def test_ranks_that_are_no_numbers_are_an_error_of_usage(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["sweep", "--ranks", "1,two"])
    assert ended.value.code == 2
    assert "'1,two': expected whole numbers, as in 1,2,4" in capsys.readouterr().err


# -------------------------------------------------------------------------------- stopping


@pytest.mark.parametrize("k, kept", [(3, "3 runs are kept in"), (0, "no run was finished")])
@pytest.mark.usefixtures("unpainted")
def test_ctrl_c_exits_130_and_says_what_is_kept(
    sweep_tiny, tmp_path, command, monkeypatch, k, kept
):
    trials = []

    def stop_after_k(settings, arrays, trial):
        trials.append(trial)
        if len(trials) > k:
            raise KeyboardInterrupt
        return run_text_trial(settings, arrays, trial)

    from lora_np.experiments.rank_sweep import estimate

    monkeypatch.setattr(estimate, "estimate", lambda *_: 60.0)
    monkeypatch.setitem(run.TRIALS, "text", stop_after_k)
    status, out, err = command(*sweep_tiny, "--out", tmp_path)
    assert (status, out) == (130, "")
    assert err.splitlines()[-1].startswith(f"stopped: {kept}")
    assert err.endswith("run the same command to continue\n")
    assert len(json.loads((tmp_path / "results.json").read_text())["trials"]) == k
    monkeypatch.setitem(run.TRIALS, "text", run_text_trial)
    assert command(*sweep_tiny, "--out", tmp_path)[0] == 0


def start(*arguments):
    """Start the command in a process group of its own, its two outputs in pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", "lora_np", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Tests that run in the background of a shell inherit an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def wait_for_trials(process, path, number, limit=120.0):
    """Return when the results hold so many trials."""
    end = time.monotonic() + limit
    while not path.exists() or len(json.loads(path.read_text())["trials"]) < number:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "no trial was recorded"
        time.sleep(0.05)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no process groups to send SIGINT to")
@pytest.mark.parametrize("send", [os.killpg, os.kill], ids=["to the group", "to the parent"])
def test_sigint_ends_the_command_and_its_workers_and_keeps_the_results(tmp_path, send):
    path = tmp_path / "results.json"
    long = "--task linear --d-in 12 --d-out 10 --steps 5000 --jobs 2"
    ranks = "1,2,3,4,5,6,7,8,9,10"
    process = start("sweep", *shlex.split(long), "--ranks", ranks, "--out", str(tmp_path))
    try:
        wait_for_trials(process, path, 2)
        send(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=120)  # the pipes end with the last of the workers
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 130, err
    assert out == "" and "Traceback" not in err
    results = json.loads(path.read_text())
    assert 2 <= len(results["trials"]) < 30 and not results["complete"]
    assert f"{len(results['trials'])} runs are kept in {tmp_path}" in err


def test_every_worker_is_started_before_ctrl_c_can_reach_it():
    children = multiprocessing.active_children
    before, heard = len(children()), signal.getsignal(signal.SIGINT)
    with workers.pool_of(3) as pool:
        assert len(children()) == 3 and before == 0
        assert signal.getsignal(signal.SIGINT) is heard
        assert list(pool.map(abs, [-1, 2])) == [1, 2]
    assert children() == []


def test_leaving_the_pool_drops_what_has_not_started():
    with pytest.raises(KeyboardInterrupt), workers.pool_of(2) as pool:
        futures = [pool.submit(sum, range(10**6)) for _ in range(1000)]
        raise KeyboardInterrupt
    assert all(f.done() for f in futures) and any(f.cancelled() for f in futures)


# -------------------------------------------------------------------------------- generate


def generate(command, folder, *more):
    return command("generate", "--run", folder, "--tokens", 24, *more)


@pytest.mark.parametrize("model", ["base", "full", "2", "best"])
def test_generate_continues_the_prompt(finished, command, model):
    status, out, err = generate(command, finished, "--model", model, "--prompt", "def f")
    assert (status, err) == (0, "") and out.startswith("def f") and out.endswith("\n")
    written = out.removeprefix("def f")[:-1]
    assert 1 <= len(written) <= 24  # bytes: a character may take several


def test_generate_is_decided_by_its_seed(finished, command):
    said = [generate(command, finished, "--seed", seed)[1] for seed in (1, 1, 2)]
    assert said[0] == said[1] != said[2]
    likeliest = [generate(command, finished, "--temperature", 0, "--seed", s)[1] for s in (1, 2)]
    assert likeliest[0] == likeliest[1]
    top = [generate(command, finished, "--top-k", 1, "--seed", s)[1] for s in (1, 2)]
    assert top == likeliest


def test_generate_refuses_what_it_cannot_do(finished, tmp_path, command):
    def said(*more, folder=finished):
        return one_line(generate(command, folder, *more))

    assert "results.json does not exist" in said(folder=tmp_path)
    assert "the prompt is empty: give at least one character" in said("--prompt", "")
    assert "no model '99': choose best, base, full, 1, 2" in said("--model", "99")
    assert "temperature = -1.0" in said("--temperature", "-1")
    assert "device 'tpu' is unknown" in said("--device", "tpu")
    shutil.copytree(finished, tmp_path / "broken")
    (tmp_path / "broken" / "base.npz").write_bytes(b"half")
    assert "base.npz is not a readable .npz file" in said(folder=tmp_path / "broken")


@pytest.mark.usefixtures("unpainted")
def test_generate_needs_a_text_sweep(tmp_path, command):
    command("sweep", *TINY_LINEAR, "--steps", 20, "--jobs", 1, "--out", tmp_path)
    said = generate(command, tmp_path)
    assert "is not a text sweep: only a text sweep has a model that writes" in one_line(said)


# ------------------------------------------------------------------------------- the rest


def test_account_prints_the_share_of_a_4096_matrix(command):
    status, out, err = command("account")
    assert (status, err) == (0, "")
    (row,) = [line for line in out.splitlines() if line.startswith("one 4096 x 4096 matrix")]
    assert row.split()[-5:] == ["8", "65,536", "0.391", "%", "0.1"]  # 8 x 8192 / 4096^2
    assert out.count("trainable / base") == 2 and "100.00 %" in out


def test_python_m_lora_np_shows_its_commands():
    process = start("--help")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert out.startswith("usage: lora-np")
    assert all(name in out for name in ("sweep", "gradcheck", "generate", "account"))


def test_no_command_prints_the_help_and_an_unknown_one_is_an_error(command):
    status, out, err = command()
    assert (status, err) == (0, "") and out.startswith("usage: lora-np") and "sweep" in out
    with pytest.raises(SystemExit, match="2"):
        command("swep")


def commands_of(parser):
    """The commands of a parser by name, and those that they have themselves."""
    for action in parser._actions:
        for name, command in action.choices.items() if isinstance(action.choices, dict) else ():
            yield name, command
            yield from commands_of(command)


def test_every_option_of_every_command_is_explained_and_names_its_default():
    commands = list(commands_of(cli.parser()))
    options = [(name, a) for name, command in commands for a in command._actions]
    assert len(commands) > 20 and len(options) > 150
    assert {"sweep", "images", "distil"} <= {name for name, _ in commands}
    for name, option in options:
        shown = option.help or ""
        assert shown, (name, option.dest)
        has_one = option.default not in (None, "==SUPPRESS==", []) and option.default is not False
        assert not has_one or "default" in shown, (name, option.dest)
    told = {option.dest: option.help for name, option in options if name == "finetune"}
    for field in dataclasses.fields(Settings):  # the parser's own default is None: a file may say
        default = field.default
        if default not in (None, dataclasses.MISSING) and default is not False:
            assert told[field.name].endswith(f"; default: {default}"), field.name


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"lora-np {lora_np.__version__}\n"


def test_a_closed_pipe_is_no_error(command, monkeypatch):
    def broken(rng):
        raise BrokenPipeError

    monkeypatch.setattr(selfcheck, "cases", broken)
    assert command("gradcheck") == (0, "", "")


def test_ctrl_c_outside_a_sweep_exits_130(command, monkeypatch):
    def interrupted(rng):
        raise KeyboardInterrupt

    monkeypatch.setattr(selfcheck, "cases", interrupted)
    assert command("gradcheck") == (130, "", "\nlora-np: interrupted\n")


def test_start_worker_lets_sigint_end_a_process_without_a_word():
    before = signal.getsignal(signal.SIGINT)
    try:
        workers.start_worker()
        handler = signal.getsignal(signal.SIGINT)
        assert callable(handler) and handler is not before
    finally:
        signal.signal(signal.SIGINT, before)
    assert keep_memory() is None  # may be asked for twice


def test_too_little_memory_is_one_line(command, monkeypatch):
    def too_large(rng):
        raise MemoryError("Unable to allocate 7.45 GiB")

    monkeypatch.setattr(selfcheck, "cases", too_large)
    said = "lora-np: not enough memory: Unable to allocate 7.45 GiB\n"
    assert command("gradcheck") == (1, "", said)


@pytest.mark.parametrize(
    "line, said",
    [
        ("swep", "did you mean sweep"),
        ("analyse x --format jsn", "did you mean json? Expected one of table, json, csv, markdown"),
        (
            "analyse x --format xml",
            "invalid choice: 'xml': expected one of table, json, csv, markd",
        ),
    ],
)
def test_a_choice_that_does_not_exist_names_the_nearest(line, said, capsys):
    with pytest.raises(SystemExit):
        cli.parser().parse_args(line.split())
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
