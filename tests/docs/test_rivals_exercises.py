"""docs/guides/rivals_exercises.md: its judge passes what is right, and nothing else."""

import inspect
import re

import pytest

from lora_np import check_method
from lora_np.methods import METHODS
from tests.docs import rival_solutions
from tests.docs.test_guides import read, walk

PAGE = "rivals_exercises.md"
NAMES = ("road", "gralora", "randlora", "delora", "fourierft", "c3a", "hra", "boft")
WRONG = [  # exercise, what a student did, the line of the solution, the student's line
    ("road", "the angle's sign", "d[:, 0] * V[:, 1]).sum", "-d[:, 0] * V[:, 1]).sum"),
    ("road", "alpha forgotten in dtheta", "dtheta = alpha * (", "dtheta = ("),
    ("gralora", "blocks not put in place", "blocks.swapaxes(1, 2)", "blocks"),
    ("gralora", "scale forgotten", "d = scale * dW", "d = dW"),
    ("randlora", "scale forgotten in dlam", "dlam = scale * (", "dlam = ("),
    ("randlora", "A forgotten in dgamma", "((left.mT @ dW) * A)", "(left.mT @ dW)"),
    ("delora", "length of b held constant", "(dB1 - (dB1 * B1).sum(axis=0) * B1)", "dB1"),
    ("delora", "the r of lam / r forgotten", "[0] / len(A1)", "[0]"),
    ("fourierft", "scale forgotten", '(s * np.einsum("noi', '(np.einsum("noi'),
    ("fourierft", "rows for columns", "(rows, columns), (out", "(columns, rows), (out"),
    ("c3a", "missing transpose: the shift's sign", "(k + s) % b", "(k - s) % b"),
    ("c3a", "1 / in forgotten", ".swapaxes(1, 2) / (n * b)", ".swapaxes(1, 2)"),
    ("hra", "length of u held constant", "c * (p @ q) * u - W", "-W"),
    ("hra", "steps not reversed", "reversed(list(enumerate(U.T)))", "enumerate(U.T)"),
    ("boft", "R's symmetric part kept", "return ((dS - dS.mT) / 2,)", "return (dS,)"),
    ("boft", "missing transposes", "-2 * M.mT @ dQ @ M.mT", "-2 * M @ dQ @ M"),
]  # fmt: skip
every_exercise = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Run the page, with its two functions of every exercise unwritten; return its names."""
    yield walk(PAGE, tmp_path_factory.mktemp("rivals"))
    del METHODS["my_gralora"]  # the page defines it


def pair(name):
    return [getattr(rival_solutions, f"{name}_{way}") for way in ("forward", "backward")]


def source(name):
    return "\n".join(inspect.getsource(function) for function in pair(name))


def edited(name, right, wrong):
    """Return the solution's pair with `right` replaced by `wrong` in its source."""
    text = source(name)
    assert text.count(right) == 1
    names = dict(vars(rival_solutions))
    exec(compile(text.replace(right, wrong), f"wrong {name}", "exec"), names)
    return names[f"{name}_forward"], names[f"{name}_backward"]


def test_the_exercises_of_the_page_are_those_of_the_solutions():
    asked = re.findall(r"^def judge_(\w+)\(forward", read(PAGE), re.M)
    assert asked == ["lora", *NAMES]
    assert {name for name, *_ in WRONG} == set(NAMES)


@every_exercise
def test_a_solution_has_at_most_15_lines_and_the_signatures_of_the_page(page, name):
    assert len([line for line in source(name).splitlines() if line.strip()]) <= 15
    for solution in pair(name):
        asked = page[solution.__name__]
        assert inspect.signature(solution) == inspect.signature(asked)


@every_exercise
def test_the_judge_passes_the_solution(page, name, capsys):
    page[f"judge_{name}"](*pair(name))
    assert capsys.readouterr().out == "right\n"


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [pytest.param(name, *edit, id=f"{name}: {what}") for name, what, *edit in WRONG],
)
def test_the_judge_fails_what_a_student_got_wrong(page, name, right, wrong):
    with pytest.raises(AssertionError):
        page[f"judge_{name}"](*edited(name, right, wrong))


@every_exercise
def test_the_judge_fails_every_gradient_that_is_slightly_off(page, name):
    forward, backward = pair(name)
    trained = inspect.getfullargspec(forward).args

    for slot, parameter in enumerate(trained):

        def off(dW, cache, slot=slot):
            gradients = list(backward(dW, cache))
            gradients[slot] = 1.0001 * gradients[slot]
            return gradients

        with pytest.raises(AssertionError, match=f"(?m)^{parameter} .* it is 1.0001 times"):
            page[f"judge_{name}"](forward, off)


@every_exercise
def test_the_judge_fails_another_method_whose_gradients_are_right(page, name):
    """The change is twice as large, in forward and in backward: only the promises notice."""
    forward, backward = pair(name)

    def twice_forward(*inputs, W0, **given):
        W, cache = forward(*inputs, W0=W0, **given)
        return 2 * W - W0, cache

    def twice_backward(dW, cache):
        return backward(2 * dW, cache)

    with pytest.raises(AssertionError) as failed:
        page[f"judge_{name}"](twice_forward, twice_backward)
    assert "WRONG" not in str(failed.value)  # as a report of the gradients says


def test_the_layer_of_the_page_makes_a_method_of_the_solution(page, monkeypatch):
    for solution in pair("gralora"):
        monkeypatch.setitem(page, solution.__name__, solution)
    assert "gradients agree with the complex step" in check_method(page["GraLoRAConfig"]())
