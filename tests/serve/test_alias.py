"""Aliases: shares, users that stay, and what is refused."""

import numpy as np
import pytest

from lora_np.serve.alias import Alias, alias_of

USERS = [f"user {i}" for i in range(4000)]


def test_users_are_shared_by_weight_and_stay(rng):
    alias = alias_of("sql=a:3,b:1")
    picks = [alias.pick(user, rng) for user in USERS]
    assert picks == [alias_of("sql=a:3,b:1").pick(user, rng) for user in USERS]
    assert abs(picks.count("b") / 4000 - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5
    assert alias.pick("\ud800", rng) in ("a", "b")  # half a surrogate pair


def test_a_change_of_weights_moves_only_users_to_what_has_grown(rng):
    before, after = alias_of("sql=a:0.9,b:0.1"), alias_of("sql=a:0.8,b:0.2")
    moved = [(before.pick(user, rng), after.pick(user, rng)) for user in USERS]
    assert ("a", "b") in moved and ("b", "a") not in moved


def test_two_aliases_share_the_users_independently(rng):
    one, two = alias_of("one=a:1,b:1"), alias_of("two=a:1,b:1")
    equal = sum(one.pick(user, rng) == two.pick(user, rng) for user in USERS)
    assert abs(equal / 4000 - 0.5) < 4 * (0.25 / 4000) ** 0.5


def test_without_a_user_the_generator_draws():
    alias = alias_of("sql=a:1,b:1")
    one, two = (np.random.default_rng(3) for _ in range(2))
    picks = [alias.pick(None, one) for _ in range(50)]
    assert picks == [alias.pick(None, two) for _ in range(50)] and set(picks) == {"a", "b"}


def test_the_top_of_the_interval_belongs_to_the_last():
    class Top:
        def random(self):
            return 1.0  # beyond what a generator draws: as rounding may leave it

    assert alias_of("x=a:0.1,b:0.2").pick(None, Top()) == "b"


def test_names_may_hold_colons_and_equals_signs():
    assert alias_of("x=a:b:1").weights == (("a:b", 1.0),)
    assert alias_of("x=a=b:1").weights == (("a=b", 1.0),)


@pytest.mark.parametrize(
    "text", ["", "x", "x=", "=a:1", "x=a", "x=a:", "x=a:one", "x=:1", "x=a:1,"]
)
def test_an_alias_that_is_written_otherwise_is_refused(text):
    with pytest.raises(ValueError, match="expected NAME=ADAPTER:WEIGHT"):
        alias_of(text)


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf"])
def test_weights_are_positive_numbers(weight):
    with pytest.raises(ValueError, match=r"the weight of 'b' is .*, expected a positive number"):
        alias_of(f"x=a:1,b:{weight}")


def test_weights_without_a_finite_sum_are_refused():
    with pytest.raises(ValueError, match="the weights have no finite sum"):
        alias_of("x=a:1e308,b:1e308")


@pytest.mark.parametrize("weights", [(), (("a", 1.0), ("a", 2.0))])
def test_adapters_are_different(weights):
    with pytest.raises(ValueError, match="different adapters"):
        Alias("x", weights)
