"""A history of training as a table and as a picture."""

import math

import pytest
from matplotlib.figure import Figure

from lora_np.train import History


def history(n, validation=()):
    steps = range(1, n + 1)
    return History([1 / k for k in steps], [0.1 * k for k in steps], [2.0] * n, list(validation))


def test_a_part_ends_where_the_validation_loss_was_measured():
    rows = history(4, [(0, 3.0), (3, 2.0)]).table().rows()
    assert [row["step"] for row in rows] == [0, 3, 4]
    assert [row["validation"] for row in rows] == [3.0, 2.0, None]
    assert rows[0]["loss"] is None and rows[0]["lr"] is None  # nothing was trained yet
    assert rows[1]["loss"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3) and rows[2]["loss"] == 1 / 4
    assert rows[1]["lr"] == pytest.approx(0.3) and rows[1]["gradient norm"] == 2.0


@pytest.mark.parametrize("n, ends", [(25, [5, 10, 15, 20, 25]), (3, [0, 1, 2, 3]), (1, [0, 1])])
def test_a_run_without_validation_has_equal_parts(n, ends):
    table = history(n).table(parts=5)
    assert "validation" not in table.columns
    assert [row["step"] for row in table.rows()] == [end for end in ends if end]


def test_a_history_without_a_step_has_a_title_alone():
    assert str(history(0)) == "0 steps, 0 tokens, 0.0 s" and history(0).table().rows() == []
    assert repr(history(0)) == "<History of 0 steps>" and repr(history(1)).endswith("1 to 1>")


def test_the_picture_holds_every_step_and_every_validation_loss():
    axis = Figure().subplots()
    found = history(4, [(0, 3.0), (4, math.nan)])
    assert found.plot(axis) is axis
    training, validation = axis.get_lines()
    assert list(training.get_xdata()) == [1, 2, 3, 4] and list(training.get_ydata()) == found.loss
    assert list(validation.get_xdata()) == [0, 4]
    assert len(history(0).plot(Figure().subplots()).get_lines()) == 1
