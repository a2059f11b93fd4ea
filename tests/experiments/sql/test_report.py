"""The tables of the text-to-SQL study."""

import math

import pytest

from lora_np.experiments.sql.report import accuracy, accuracy_table, report


def record(contender, split, prompt, right, seed=0, template="count", reason="wrong rows"):
    said = {"contender": contender, "split": split, "seed": seed, "template": template}
    reason = None if right else reason
    return {**said, "prompt": prompt, "right": right, "exact": False, "reason": reason}


def planted():
    base = [record("base", "new values", f"q{i}", i < 1, reason="syntax") for i in range(4)]
    lora = [
        record("LoRA", "new values", f"q{i}", i < 3, seed, "join" if i % 2 else "count")
        for i in range(4)
        for seed in (0, 1)
    ]
    return base + lora + [record("LoRA", "unseen schema", "r0", True)]


def test_the_error_is_of_questions_not_of_answers():
    one = [r for r in planted() if r["contender"] == "LoRA" and r["split"] == "new values"]
    share, error, n = accuracy(one)
    assert (share, n) == (0.75, 4)
    assert error == pytest.approx(math.sqrt(0.75 * 0.25 / 3))
    assert accuracy(one[:2]) == (1.0, None, 1)


def test_the_tables_hold_the_planted_numbers():
    assert str(accuracy_table(planted(), "right")).splitlines() == [
        "      new values (n = 4)  unseen schema (n = 1)",
        "base        25.0 +- 25.0                      -",
        "LoRA        75.0 +- 25.0                  100.0",
    ]
    text = report(planted())
    assert "over questions; 2 seeds" in text
    assert [line.split() for line in text.splitlines()][-4:] == [
        ["base", "LoRA"],
        ["syntax", "75.0", "0.0"],
        ["wrong", "rows", "0.0", "22.2"],
        ["right", "25.0", "77.8"],
    ]
    assert ["join", "-", "50.0", "+-", "50.0"] in [line.split() for line in text.splitlines()]
