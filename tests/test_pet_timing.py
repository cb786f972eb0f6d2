"""Frame times, windows and units of real PET, against closed forms and by the sentence that bad ones get."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bids_petsynth.errors import InputError, UsageError
from bids_petsynth.pet.preparation import window_weights
from bids_petsynth.pet.scan import check_units
from bids_petsynth.pet.timing import frame_times

SHARED = Path(__file__).parents[2] / "shared" / "data"


def test_weights_are_the_seconds_within_the_window():
    starts, durations = np.arange(40, 90, 10) * 60.0, np.full(5, 600.0)
    assert window_weights(starts, durations, (50, 70)) == pytest.approx([0, 0.5, 0.5, 0, 0])
    # 5 of the 20 minutes from the first frame, 10 from the second, 5 from the third
    assert window_weights(starts, durations, (55, 75)) == pytest.approx([0, 0.25, 0.5, 0.25, 0])
    assert window_weights([3000], [1200], (50, 70)) == pytest.approx([1])
    # a pause between frames counts for nothing: 10 of 20 minutes are scanned, 5 in each frame
    assert window_weights([3000, 3900], [300, 300], (50, 70)) == pytest.approx([0.5, 0.5])
    # times rounded to seconds do not pull in the frame before
    assert window_weights([2400.5, 3000.5], [600, 1200], (50, 70)) == pytest.approx([0, 1], abs=1e-12)
    # frames of unequal length, 2 and 14 minutes in the window
    assert window_weights([2880, 3120], [240, 1080], (50, 66)) == pytest.approx([0.125, 0.875])


@pytest.mark.parametrize(
    "starts, durations, window, words",
    [
        ([0], [1200], (50, 70), r"runs from 0 to 20 min after injection and covers 0% of the window of 50 to 70 min"),
        ([3000], [500], (50, 70), r"covers 42% .*--pet-window START END"),
        ([0], [5400], (50, 70), r"only 22% of what would be averaged .* frames this long cannot be cut"),
    ],
)
def test_a_window_that_was_not_scanned_is_refused(starts, durations, window, words):
    with pytest.raises(InputError, match=words):
        window_weights(starts, durations, window)


def test_a_window_that_is_none_is_refused():
    with pytest.raises(UsageError, match="70 to 50 min is none"):
        window_weights([3000], [1200], (70, 50))


def test_times_count_from_the_injection():
    (starts, durations), notes = frame_times(
        {"FrameTimesStart": [0, 300], "FrameDuration": [300, 300], "InjectionStart": -3000, "ScanStart": 0}, 2, "sub-01"
    )
    assert starts.tolist() == [3000, 3300] and durations.tolist() == [300, 300] and notes == ()
    # frames cannot begin before the scan does
    (starts, _), notes = frame_times({"FrameTimesStart": 0, "FrameDuration": 1200, "ScanStart": 3000}, 1, "sub-01")
    assert starts.tolist() == [3000] and "count from ScanStart" in notes[0]
    times, notes = frame_times({}, 1, "sub-01")
    assert times is None and "taken to be of the window asked for" in notes[0]
    _, notes = frame_times(
        {"FrameTimesStart": [0, 300], "FrameDuration": [300, 300], "ImageDecayCorrected": False}, 2, "sub-01"
    )
    assert "not corrected for decay" in notes[0]


@pytest.mark.parametrize(
    "sidecar, frames, words",
    [
        ({"FrameTimesStart": [0, 300], "FrameDuration": [300, 300]}, 3, "2 FrameTimesStart .* the image has 3 frames"),
        ({"FrameTimesStart": [0, 300], "FrameDuration": [300]}, 2, "1 FrameDuration where the image has 2 frames"),
        ({"FrameDuration": [300, 300]}, 2, "lacks FrameTimesStart of the 2 frames"),
        ({"FrameTimesStart": [300, 0], "FrameDuration": [300, 300]}, 2, "does not rise"),
        ({"FrameTimesStart": [0, 300], "FrameDuration": [300, 0]}, 2, "FrameDuration is not above 0"),
        ({"FrameTimesStart": [0, 300], "FrameDuration": [400, 300]}, 2, "frame 1 ends 100 s after frame 2 begins"),
        ({"FrameTimesStart": [0, 300], "FrameDuration": [300, 600]}, 2, None),
        ({"FrameTimesStart": [0, 60, 180], "FrameDuration": [60, 180, 300]}, 3, "holds the end of each frame"),
        ({"FrameTimesStart": [3000000], "FrameDuration": [1200000]}, 1, "looks like milliseconds"),
        (
            {"FrameTimesStart": [0], "FrameDuration": [98000]},
            1,
            "milliseconds; BIDS wants seconds: divide them by 1000",
        ),
        ({"FrameTimesStart": [50], "FrameDuration": [20]}, 1, "last 20 s together, which looks like minutes"),
        ({"FrameTimesStart": [43200], "FrameDuration": [20]}, 1, "12 hours"),
        ({"FrameTimesStart": [0], "FrameDuration": [600], "InjectionStart": 900}, 1, "which is before it"),
        ({"FrameTimesStart": ["soon"], "FrameDuration": [600]}, 1, "FrameTimesStart in the sidecar is .*soon"),
        ({"FrameTimesStart": [0], "FrameDuration": [float("nan")]}, 1, "no number of seconds"),
    ],
)
def test_frame_times_that_cannot_be_are_told(sidecar, frames, words):
    if words is None:
        assert frame_times(sidecar, frames, "sub-01")[0] is not None
        return
    with pytest.raises(InputError, match=f"sub-01.*{words}"):
        frame_times(sidecar, frames, "sub-01")


@pytest.mark.parametrize("unit", ["Bq/mL", "Bq/ml", "kBq/mL", "SUV", "g/mL", "unitless", "BQML", "counts/s", "µCi/cc"])
def test_units_of_activity_pass(unit):
    check_units({"Units": unit}, "sub-01")
    check_units({}, "sub-01")


@pytest.mark.parametrize("unit", ["mm", "HU", "ms", "counts per fortnight", "mL/min/g", 3, ["Bq/mL"]])
def test_other_units_are_told(unit):
    with pytest.raises(InputError, match="sub-01: the sidecar gives the unit .* none of activity"):
        check_units({"Units": unit}, "sub-01")


@pytest.mark.parametrize("name, words", [("pet001", "end of each frame"), ("pet006", "milliseconds")])
def test_real_sidecars_with_wrong_times_are_told(name, words):
    import json

    found = sorted((SHARED / "bids-examples" / name).rglob("*_pet.json"))
    if not found:
        pytest.skip("needs ../shared/data/bids-examples")
    sidecar = json.loads(found[0].read_text())
    with pytest.raises(InputError, match=words):
        frame_times(sidecar, len(sidecar["FrameDuration"]), name)
