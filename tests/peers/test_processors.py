"""The page's table of the linear task holds whatever kind of processor OpenBLAS works as."""

import pytest

from lora_np.experiments.rank_sweep import LinearSettings
from tests.experiments.processors import (
    above_the_floor,
    core_types,
    figures,
    figures_of_the_page,
    sweeps,
)

pytestmark = pytest.mark.peers
F64 = 1e-12  # float64, relative to the loss before training


def test_the_linear_table_is_the_pages_on_every_kind_of_processor():
    found = list(sweeps(LinearSettings()))
    assert len(found) == 2 * len(core_types()) >= 2
    for core_type, table, results in found:
        assert figures(table) == figures_of_the_page(), core_type
        assert max(map(abs, above_the_floor(results))) < F64, core_type
