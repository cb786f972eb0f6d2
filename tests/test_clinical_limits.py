"""What is said of values that tell nothing of amyloid or tau."""

import pytest

from bids_petsynth.clinical.limits import untold


@pytest.mark.parametrize("known", [[], ["age", "sex"], ["age", "nfl_simoa"], ["mmse"], ["ttau_simoa", "cdrsb"]])
def test_warns_where_nothing_tells(known):
    used = dict.fromkeys(("age", "apoe4", "ptau217_simoa"), "missing") | dict.fromkeys(known, "found")
    for target in ("amyloid", "tau"):
        assert "no p-tau, amyloid beta or GFAP" in untold(used, target)
    assert not untold(used, "metabolism")
    assert ("age alone" in untold(used, "tau")) == (not set(known) - {"age", "sex"})


@pytest.mark.parametrize("telling", ["apoe4", "ptau217_simoa", "ab42_40_ipms", "gfap_simoa", "ab42_msd"])
def test_one_telling_value_is_enough(telling):
    assert not untold({"age": "found", "nfl_simoa": "found", telling: "converted"}, "amyloid")
