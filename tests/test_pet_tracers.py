"""The tables of tracers, targets, Centiloid equations and cut-offs."""

import pytest

from bids_petsynth.anatomy.regions import codes_of, region_index
from bids_petsynth.errors import UsageError
from bids_petsynth.pet.tracers import centiloid_equation, cutoffs, default_cutoff, targets, tracer, tracers
from bids_petsynth.tables import read_table


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("AV45", "AV45"),
        ("av-45", "AV45"),
        ("FBP", "AV45"),
        ("[18F]florbetapir", "AV45"),
        ("18F-AV-45", "AV45"),
        ("florbetaben (18F)", "FBB"),
        ("[11C]PiB", "PIB"),
        ("Pittsburgh Compound-B", "PIB"),
        ("flutemetamol", "FMM"),
        ("18F-NAV4694", "NAV4694"),
        ("FDG", "FDG"),
        ("F18-FDG", "FDG"),
        ("flortaucipir", "AV1451"),
        ("T807", "AV1451"),
        ("AV1451", "AV1451"),
    ],
)
def test_tracer_is_found_by_any_usual_name(spelling, name):
    assert tracer(spelling).name == name


@pytest.mark.parametrize("wrong", ["", "AV", "raclopride", "18F"])
def test_unknown_tracer_lists_the_known_ones(wrong):
    with pytest.raises(UsageError) as raised:
        tracer(wrong)
    assert all(known.name in str(raised.value) for known in tracers())


def test_no_two_tracers_share_a_name():
    spellings = [name.lower() for t in tracers() for name in {t.name, *t.synonyms} if name.lower() != t.name.lower()]
    spellings += [t.name.lower() for t in tracers()]
    assert len(spellings) == len(set(spellings))


def test_every_tracer_has_a_reference_a_target_and_a_sensible_window():
    for t in tracers():
        start, end = t.window_min
        assert 0 <= start < end <= 180
        assert t.display[0] < 1 < t.display[1]
        assert t.reference_codes
        assert t.default_target in targets()
        assert not set(t.reference_codes) & set(targets()[t.default_target].codes)


def test_whole_cerebellum_takes_in_its_inferior_part_and_no_brainstem():
    codes = set(tracer("AV45").reference_codes)
    assert set(codes_of("cerebellar_grey_inferior", "vermis", "cerebellar_white")) < codes
    assert not codes & set(codes_of("brainstem"))
    assert codes == set(targets()["whole_cerebellum"].codes)


def test_targets_name_existing_regions_once_and_braak_stages_do_not_overlap():
    for target in targets().values():
        assert set(target.regions) <= set(region_index())
        assert len(target.regions) == len(set(target.regions))
    stages = [set(targets()[name].codes) for name in ("braak_12", "braak_34", "braak_56")]
    assert sum(map(len, stages)) == len(set.union(*stages))


def test_every_row_has_a_source():
    for table in ("tracers.tsv", "targets.tsv", "centiloid.tsv", "cutoffs.tsv", "example.tsv"):
        assert all(row["source"] for row in read_table(table)), table


def test_pib_anchors_are_0_and_100_centiloid():
    equation = centiloid_equation("PIB")
    assert equation(1.009) == pytest.approx(0, abs=0.01)
    assert equation(1.009 + 1.067) == pytest.approx(100, abs=0.01)


@pytest.mark.parametrize(("suvr", "centiloid"), [(1.05, 6.8), (1.54, 81.0)])
def test_florbetaben_spm_equation_gives_the_published_group_means(suvr, centiloid):
    # Alz Res Ther 2021;13:67, table 3 gives both for the Centiloid cortex, SUVR to two digits (.005 is .8 CL).
    assert centiloid_equation("FBB", "standard SPM")(suvr) == pytest.approx(centiloid, abs=1.0)


def test_only_amyloid_tracers_have_a_centiloid_and_each_a_single_default():
    for t in tracers():
        assert (centiloid_equation(t.name) is not None) == (t.target_class == "amyloid")
        defaults = [r for r in read_table("centiloid.tsv") if r["tracer"] == t.name and r["default"] == "yes"]
        assert len(defaults) == (t.target_class == "amyloid")
    with pytest.raises(UsageError, match="standard SPM"):
        centiloid_equation("FBB", "no such pipeline")


def test_amyloid_equations_agree_on_where_zero_is():
    # All five are anchored on young controls, so the SUVR of 0 CL lies just around 1 in each.
    for t in tracers():
        equation = centiloid_equation(t.name)
        if equation is not None:
            assert -equation.intercept / equation.slope == pytest.approx(1.0, abs=0.05)


def test_default_cutoff_is_unique():
    assert sum(cutoff.default for cutoff in cutoffs()) == 1
    assert default_cutoff().centiloid == 20
    values = [cutoff.centiloid for cutoff in cutoffs()]
    assert values == sorted(values) == [12, 20, 24, 30]
