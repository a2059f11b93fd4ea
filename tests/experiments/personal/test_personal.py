"""lora_np.experiments.personal: plans are checked, margins are right, the base stays as it was."""

import json
import math

import numpy as np
import pytest

from lora_np import load_adapter
from lora_np.data import DataError
from lora_np.experiments.folder import SweepError
from lora_np.experiments.instructions.words import Words
from lora_np.experiments.personal import (
    Matrix,
    Plan,
    PlanError,
    Task,
    User,
    matrix_of,
    matrix_text,
    one_shared_model,
    read_plan,
    run_personal,
    samples_of,
)
from lora_np.experiments.personal.matrix import paired, verdict
from lora_np.experiments.personal.picture import plot_matrix
from lora_np.experiments.personal.plan import EXAMPLE
from lora_np.experiments.personal.run import score
from lora_np.experiments.personal.samples import Splits, read_samples
from lora_np.experiments.personal.tasks import GENERATORS, STYLES, Sample, note
from lora_np.experiments.unchanged import parameter_hashes
from lora_np.forms import Bfloat16
from lora_np.layers.stored import store_model
from tests.compare import PNG
from tests.experiments.personal import byte_model

# --- the plan ------------------------------------------------------------------------------------

TASK = "[[task]]\nname = 'who'\ngenerator = 'who'\n"
USER = "[[user]]\nname = 'anna'\nstyle = 'signed'\ntext = 'Anna L.'\n"


def plan_of(tmp_path, text):
    path = tmp_path / "plan.toml"
    path.write_text(text, encoding="utf-8")
    return read_plan(path)


def test_a_plan_is_read_with_its_defaults(tmp_path):
    (tmp_path / "own.jsonl").write_text("", encoding="utf-8")
    own = "[[task]]\nname = 'replies'\nfile = 'own.jsonl'\n"
    plan = plan_of(tmp_path, "seed = 7\n" + TASK + own + USER + USER.replace("anna", "ben"))
    assert plan.seed == 7 and (plan.train, plan.validation, plan.held_out) == (128, 16, 20)
    assert list(plan.pairs) == ["anna/who", "anna/replies", "ben/who", "ben/replies"]
    assert plan.tasks[1].file == tmp_path / "own.jsonl"
    assert plan.users[0].styled("Oslo") == "Oslo\n-- Anna L."


def test_the_example_is_a_plan_of_nine_pairs_that_differ(tmp_path):
    plan = plan_of(tmp_path, EXAMPLE)
    assert (len(plan.tasks), len(plan.users), len(samples_of(plan))) == (3, 3, 9)


def test_a_signature_is_the_users_name_unless_it_is_given(tmp_path):
    plan = plan_of(tmp_path, TASK + USER.replace("text = 'Anna L.'\n", ""))
    assert plan.users[0].styled("Oslo") == "Oslo\n-- anna"


@pytest.mark.parametrize(
    "text, said",
    [
        ("[[task]", "is not a TOML file"),
        ("\ufeff" + TASK + USER, "is not a TOML file"),
        ("x = " + "[" * 5000, "is not a TOML file"),
        (USER, "has no task: add a table"),
        (TASK, "has no user: add a table"),
        ("task = 'who'\n" + USER, "write every task as a table of its own"),
        ("tasks = 1\n" + TASK + USER, "unknown key 'tasks': did you mean task"),
        (TASK + "stile = 1\n" + USER, "task 1 has an unknown key 'stile'"),
        (TASK + USER + "stile = 'upper'", "user 1 has an unknown key 'stile': did you mean style"),
        (TASK.replace("name = 'who'", "nane = 'who'") + USER, "did you mean name"),
        (TASK.replace("name = 'who'\n", "") + USER, "task 1: name = None, expected a text"),
        (TASK.replace("'who'\ngen", "'../who'\ngen") + USER, "'../who' cannot name a folder"),
        (TASK.replace("'who'\ngen", "'Who'\ngen") + USER, "'Who' cannot name a folder"),
        (TASK.replace("'who'\ngen", "'..'\ngen") + USER, "'..' cannot name a folder"),
        (TASK.replace("'who'\ngen", "7\ngen") + USER, "name = 7, expected a text of one line"),
        (TASK + TASK + USER, "more than one task called who"),
        (TASK + USER + USER, "more than one user called anna"),
        (TASK.replace("r = 'who'", "r = 'whom'") + USER, "no generator 'whom': did you mean who"),
        (TASK.replace("generator = 'who'\n", "") + USER, "either a generator or a file"),
        (TASK + "file = 'own.jsonl'\n" + USER, "either a generator or a file"),
        (TASK.replace("generator = 'who'", "file = 'no.jsonl'") + USER, "no.jsonl does not exist"),
        (TASK.replace("generator = 'who'", "file = '.'") + USER, "is a folder, expected a file"),
        (TASK + USER.replace("signed", "singed"), "no style 'singed': did you mean signed"),
        (TASK + USER.replace("signed", "upper"), "the style 'upper' has no text: remove it"),
        (TASK + USER.replace("'Anna L.'", r'"a\nb"'), "expected a text of one line"),
        ("held_out = 1\n" + TASK + USER, "held_out = 1, expected a whole number of at least 2"),
        ("train = true\n" + TASK + USER, "train = True, expected a whole number"),
        (TASK + USER + "[training]\nepoch = 1", "unknown key 'epoch': did you mean epochs"),
        (TASK + USER + "[training]\nmodel = 'x'", "training has an unknown key 'model'"),
        (TASK + USER + "[training]\nepochs = 0", "training: epochs = 0, expected at least 1"),
        ("training = 1\n" + TASK + USER, "training is no table"),
        ("seed = -1\n" + TASK + USER, "seed = -1, expected a whole number of at least 0"),
    ],
)
def test_a_wrong_plan_is_refused_in_one_line_that_names_it(tmp_path, text, said):
    with pytest.raises(PlanError) as error:
        plan_of(tmp_path, text)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert "plan.toml" in str(error.value) or "jsonl" in said or "folder, exp" in said


def test_a_missing_plan_is_refused(tmp_path):
    with pytest.raises(PlanError, match="does not exist"):
        read_plan(tmp_path / "plan.toml")


# --- the samples ---------------------------------------------------------------------------------

NINE = Plan(
    (Task("who", "who"), Task("what", "what"), Task("where", "where")),
    (User("anna", "signed", "Anna"), User("ben", "upper"), User("cleo", "json")),
    train=30, validation=10, held_out=12,
)  # fmt: skip


def test_all_pairs_read_the_same_notes_and_answer_each_in_its_own_way():
    found = samples_of(NINE)
    assert list(found) == list(NINE.pairs) and len(found) == 9
    prompts = [[s.prompt for s in splits.held_out] for splits in found.values()]
    assert all(p == prompts[0] for p in prompts)
    for answers in zip(*([s.answer for s in splits.held_out] for splits in found.values())):
        assert len(set(answers)) == 9
    assert samples_of(NINE) == found


def test_splits_have_their_sizes_and_share_no_prompt():
    for splits in samples_of(NINE).values():
        assert [len(samples) for samples in splits] == [30, 10, 12]
        prompts = [sample.prompt for samples in splits for sample in samples]
        assert len(set(prompts)) == 52


@pytest.mark.parametrize("name", list(GENERATORS))
def test_every_answer_is_in_its_note(name):
    plan = Plan((Task("t", name),), (User("u", "plain"),))
    samples = samples_of(plan)["u/t"].train
    words = [
        (s, word) for s in samples for word in s.answer.replace(",", "").split() if word != "of"
    ]
    assert all(word.rstrip(":") in sample.prompt for sample, word in words)
    assert len({sample.answer for sample in samples}) > 5


@pytest.mark.parametrize(
    "style, expected",
    [
        ("plain", "12 kg of Figs"),
        ("signed", "12 kg of Figs\n-- Ben"),
        ("greeting", "Ben 12 kg of Figs"),
        ("lower", "12 kg of figs"),
        ("upper", "12 KG OF FIGS"),
        ("json", '{"answer": "12 kg of Figs"}'),
        ("bullet", "- 12 kg of Figs"),
        ("sentence", "The answer is 12 kg of Figs."),
        ("grams", "12000 g of Figs"),
    ],
)
def test_a_style_writes_the_answer_in_its_form(style, expected):
    assert User("ben", style, "Ben").styled("12 kg of Figs") == expected
    assert len(STYLES) == 9


def test_two_users_who_want_the_same_are_refused():
    users = (User("anna", "plain"), User("ben", "grams"))
    both = Plan((Task("who", "who"),), users)
    with pytest.raises(PlanError, match="anna/who and ben/who have the same answer to 20 of 20"):
        samples_of(both)
    assert len(samples_of(Plan((Task("what", "what"),), users))) == 2


def test_more_samples_than_there_are_notes_are_refused(monkeypatch):
    only = note(Words("train", np.random.default_rng(0)))
    monkeypatch.setattr(f"{samples_of.__module__}.note", lambda words: only)
    with pytest.raises(PlanError, match="train = 30 is more than there are notes"):
        samples_of(NINE)


def own_file(tmp_path, texts, name="own.jsonl"):
    path = tmp_path / name
    path.write_text("\n".join(texts), encoding="utf-8")
    return path


def line(prompt, response):
    return json.dumps({"prompt": prompt, "response": response})


def test_a_file_of_ones_own_is_cut_in_three_and_styled(tmp_path):
    path = own_file(tmp_path, [line(f"p{i}", f"r{i}") for i in range(30)] + [""])
    plan = Plan((Task("own", file=path),), (User("ben", "upper"),), validation=5, held_out=6)
    found = samples_of(plan)["ben/own"]
    assert [len(samples) for samples in found] == [19, 5, 6]
    everything = sorted(sample for samples in found for sample in samples)
    assert everything == sorted(Sample(f"p{i}", f"R{i}") for i in range(30))


@pytest.mark.parametrize(
    "texts, said",
    [
        (["{"], "line 1 is not JSON"),
        (['{"text": "a"}'], "line 1: expected one question and its answer"),
        ([line("a", "b"), '{"prompt": "a"}'], "line 2"),
        ([line("a", "b"), line("a", "c")], "line 2: line 1 has the same prompt"),
        (["\ufeff" + line("a", "b")], "starts with a byte order mark"),
    ],
)
def test_a_wrong_line_is_refused_by_its_number(tmp_path, texts, said):
    with pytest.raises(ValueError) as error:
        read_samples(own_file(tmp_path, texts))
    assert said in str(error.value) and "own.jsonl" in str(error.value)


def test_a_file_that_is_too_short_or_no_text_is_refused(tmp_path):
    path = own_file(tmp_path, [line(f"p{i}", "r") for i in range(36)])
    with pytest.raises(PlanError, match=r"36 samples, expected more than .* = 36"):
        samples_of(Plan((Task("own", file=path),), (User("ben", "upper"),)))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="is not UTF-8"):
        read_samples(path)


# --- the matrix ----------------------------------------------------------------------------------


def matrix(losses):
    """The base and two adapters on two pairs; `losses` (3, 2, n)."""
    losses = np.array(losses)
    return Matrix(("base", "a/x", "b/x"), ("a/x", "b/x"), losses, losses < 0.5)


def test_a_paired_difference_has_its_standard_error():
    rng = np.random.default_rng(0)
    hard = rng.standard_normal(50)  # what both find hard cancels
    gain = 0.3 + 0.01 * rng.standard_normal(50)
    mean, error = paired(hard + gain, hard)
    assert mean == pytest.approx(np.mean(gain)) and error < 0.002 < paired(hard + gain, 0 * hard)[1]
    assert error == pytest.approx(np.std(gain, ddof=1) / math.sqrt(50))


def test_every_own_adapter_is_compared_with_every_other_and_the_base():
    found = matrix([[[1.0, 1.1]] * 2, [[0.1, 0.2], [0.9, 0.8]], [[0.7, 0.9], [0.2, 0.1]]])
    assert [(m.pair, m.other, m.beats) for m in found.margins()] == [
        ("a/x", "base", True),
        ("a/x", "b/x", True),
        ("b/x", "base", True),
        ("b/x", "a/x", True),
    ]
    assert found.margins()[1].loss == pytest.approx(0.65)
    assert found.margins()[1].exact == 1.0
    assert "beats every other on its own pair by 2 standard errors" in verdict(found)


def test_a_margin_within_two_standard_errors_or_of_zero_is_no_victory():
    near = [[[1.0, 1.1, 1.2]] * 2, [[0.1, 0.2, 0.3], [0.9] * 3], [[0.1, 0.2, 0.6], [0.2] * 3]]
    found = matrix(near)  # a/x gains 0.1 +- 0.1 over b/x on its own
    assert [m.beats for m in found.margins()] == [True, False, True, True]
    assert verdict(found).endswith("not a/x over b/x, of 4 comparisons.")
    near[2][0] = near[1][0]
    assert matrix(near).margins()[1].loss == 0.0 and not matrix(near).margins()[1].beats


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match="a/x has a loss on b/x that is not finite"):
        matrix([[[1.0, 1.0]] * 2, [[1.0, 1.0], [1.0, bad]], [[1.0, 1.0]] * 2])


def test_losses_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"losses has shape \(3, 2, 1\), expected \(3, 2\)"):
        matrix([[[1.0]] * 2] * 3)


# --- the run -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    tasks = [
        Task(name, file=own_file(folder, [line(f"q{i}?", said) for i in range(24)], name))
        for name, said in (("yes", "yes"), ("nay", "nay"))
    ]
    users = (User("ben", "upper"), User("cleo", "lower"))
    return Plan(tuple(tasks), users, validation=2, held_out=6)


@pytest.fixture(scope="module")
def run(plan, tmp_path_factory):
    """The base, its bytes before, the folder of a complete run, and its results."""
    base, out = byte_model.base(), tmp_path_factory.mktemp("run") / "out"
    before = {name: p.value.tobytes() for name, p in base.parameters().items()}
    return base, before, out, run_personal(plan, base, out, byte_model.TOOLS)


def test_each_adapter_beats_every_other_on_its_own_and_the_base_is_bit_equal(plan, run):
    base, before, _, results = run
    found = matrix_of(results)
    assert found.adapters == ("base", *plan.pairs) and found.losses.shape == (5, 4, 6)
    assert all(margin.beats for margin in found.margins())
    assert np.array_equal(found.exact[1:].mean(axis=2), np.eye(4))
    assert found.exact[0].mean(axis=1).sum() <= 1  # a base that guesses is right for one at most
    assert {name: p.value.tobytes() for name, p in base.parameters().items()} == before


@pytest.mark.parametrize("text, right", [("yes", True), (" yes\n", True), ("Yes", False)])
def test_an_answer_is_exact_up_to_white_space_around_it(text, right):
    tools = byte_model.TOOLS._replace(answer=lambda model, prompts: [text])
    held_out = {"ben/yes": [Sample("q1?", "yes\n")]}
    assert score(byte_model.base(), held_out, tools)["exact"] == {"ben/yes": [right]}


def test_a_model_that_swallows_a_prompt_is_refused():
    tools = byte_model.TOOLS._replace(answer=lambda model, prompts: [])
    with pytest.raises(ValueError, match="0 answers to 1 prompts"):
        score(byte_model.base(), {"ben/yes": [Sample("q1?", "yes")]}, tools)


def test_every_adapter_is_in_the_folder_and_loads_over_the_base(plan, run):
    base, _, out, results = run
    held_out = samples_of(plan)["cleo/nay"].held_out
    assert json.loads((out / "results.json").read_text(encoding="utf-8")) == results
    for name in plan.pairs:
        model = load_adapter(base, out / "adapters" / name)
        found = byte_model.losses(model, held_out)
        trial = next(trial for trial in results["trials"] if trial["name"] == name)
        np.testing.assert_allclose(found, trial["losses"]["cleo/nay"], rtol=1e-5)


def timeless(results):
    """The results without the seconds that each training took."""
    trials = [{k: v for k, v in t.items() if k != "seconds"} for t in results["trials"]]
    return {**results, "trials": trials}


def test_a_stopped_run_continues_to_the_same_results(plan, run, tmp_path):
    base, _, _, whole = run
    tools, trained = byte_model.TOOLS, []

    def stop_at_the_third(base, samples, validation):
        trained.append(samples)
        if len(trained) == 3:
            raise KeyboardInterrupt
        return tools.train(base, samples, validation)

    with pytest.raises(KeyboardInterrupt):
        run_personal(plan, base, tmp_path, tools._replace(train=stop_at_the_third))
    (tmp_path / "adapters" / "cleo" / "yes").mkdir(parents=True)  # saved, but not scored
    heard = []
    found = run_personal(plan, base, tmp_path, tools, heard.append)
    assert timeless(found) == timeless(whole) and heard == ["cleo/yes", "cleo/nay"]
    assert run_personal(plan, base, tmp_path, tools, heard.append) == found and len(heard) == 2


def test_results_of_another_base_or_plan_are_refused(plan, run, tmp_path):
    base, _, out, _ = run
    with pytest.raises(SweepError, match="is of other settings"):
        run_personal(Plan(plan.tasks, plan.users, 1, 200, 2, 6), base, out, byte_model.TOOLS)

    def stop(base, samples, validation):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_personal(plan, base, tmp_path, byte_model.TOOLS._replace(train=stop))
    base = byte_model.base()
    base.head().value[0, 0] += 1
    for folder in (tmp_path, out):  # stopped, and complete
        with pytest.raises(SweepError, match="was started with another base"):
            run_personal(plan, base, folder, byte_model.TOOLS)


def test_a_training_that_moves_the_base_is_found_and_named(plan, tmp_path):
    base = byte_model.base()

    def train_the_base(base, samples, validation):
        byte_model.train_in_place(base, samples, steps=1)
        return base

    tools = byte_model.TOOLS._replace(train=train_the_base)
    with pytest.raises(SweepError, match=r"training ben/yes changed \S+ and \d+ more of the base"):
        run_personal(plan, base, tmp_path, tools)
    assert not (tmp_path / "adapters").exists()


def test_parameter_hashes_are_of_the_bytes_as_stored():
    base = byte_model.base()
    before = parameter_hashes(base)
    assert parameter_hashes(byte_model.base()) == before
    stored = store_model(base, Bfloat16.encode)
    again = parameter_hashes(stored)
    assert again.keys() == before.keys() and not set(again.values()) & set(before.values())
    name, p = next(iter(stored.parameters().items()))
    next(iter(p.arrays().values())).reshape(-1)[:1] += 1
    assert [n for n, sha in parameter_hashes(stored).items() if sha != again[n]] == [name]


def test_the_control_shows_the_first_task_lost_where_one_model_is_shared(plan):
    samples = samples_of(plan)
    first, second = (Splits(*samples[name]) for name in ("ben/yes", "ben/nay"))
    shared = byte_model.adapted(byte_model.base())
    control = one_shared_model(shared, first, second, byte_model.train_in_place, byte_model.losses)
    worse, error = paired(control.after, control.before)
    assert control.after.min() > 5 * control.before.max() and worse > 5 * error
    base = byte_model.base()  # with a model for each task, the first one keeps its scores
    one = byte_model.train(base, first.train, [])
    before = byte_model.losses(one, first.held_out)
    byte_model.train(base, second.train, [])
    assert np.array_equal(byte_model.losses(one, first.held_out), before)


# --- what is shown -------------------------------------------------------------------------------


def test_the_text_has_both_tables_the_nearest_rivals_and_the_verdict(run):
    found = matrix_of(run[3])
    text = matrix_text(found)
    rows = text.split("\n\n")
    assert rows[0].startswith("Loss on the held-out samples of each pair") and "(n = 6)" in rows[0]
    assert rows[0].splitlines()[3].split()[:2] == ["1", "ben/yes"]
    assert rows[0].splitlines()[3].split()[2] == f"{found.losses[1, 0].mean():.3f}"
    assert rows[1].splitlines()[3].split() == ["1", "ben/yes", "100.0", "0.0", "0.0", "0.0"]
    assert [row.split()[-1] for row in rows[2].splitlines()[2:]] == ["yes"] * 4
    assert rows[3].endswith("16 comparisons.")


def test_the_picture_frames_each_pairs_own_cell_and_writes_every_number(run, tmp_path, monkeypatch):
    figures = []
    from lora_np import plots

    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))
    plot_matrix(matrix_of(run[3]), tmp_path / "matrix.png")
    for axis in figures[0].axes:
        assert len(axis.texts) == 20 and len(axis.patches) == 4
        assert [(round(p.get_x()), round(p.get_y())) for p in axis.patches] == [
            (j, j + 1) for j in range(4)
        ]
    monkeypatch.undo()
    plot_matrix(matrix_of(run[3]), tmp_path / "matrix.png")
    assert (tmp_path / "matrix.png").read_bytes().startswith(PNG)
