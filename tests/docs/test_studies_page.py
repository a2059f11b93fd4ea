"""docs/studies.md: every claim of the studies stands there with a verdict."""

import re

import pytest

from lora_np.experiments import grid, regret, small_data
from lora_np.experiments.claims import VERDICTS
from lora_np.experiments.grid import claims as grid_claims
from lora_np.experiments.regret import claims as regret_claims
from lora_np.experiments.small_data import claims as small_claims
from tests.docs.pages import ROOT, bodies
from tests.experiments.test_contenders import before, planted, steps

PAGE = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
GRID = grid.grid_study(grid.GridSettings()), grid_claims.claims, steps
SMALL = small_data.small_data_study(small_data.SmallDataSettings()), small_claims.claims, before
REGRET = regret.regret_study(regret.RegretSettings()), regret_claims.claims, dict
every_study = pytest.mark.parametrize("study, claims, more", [GRID, SMALL, REGRET])


def block_of(name):
    """Return what the page shows of a command."""
    index = ["grid", "small-data", "regret"].index(name)
    return bodies(PAGE, "text")[index]


@every_study
def test_every_claim_stands_on_the_page_with_its_rule_and_a_verdict(study, claims, more):
    shown = " ".join(block_of(study.name).split())
    found = claims(planted(study, lambda *_: 2.0, more=more))
    for claim in found:
        said = f"{claim.of}, {claim.says} rule: "
        assert any(f"{verdict}: {said}" in shown for verdict in VERDICTS.values()), claim
    assert len(re.findall(r"rule: ", shown)) == len(found)


@every_study
def test_every_contender_stands_on_the_page(study, claims, more):
    shown = block_of(study.name)
    rows = [contender.label for contender in study.contenders]
    assert [row for row in rows if not re.search(f"^{re.escape(row)} ", shown, re.M)] == []
