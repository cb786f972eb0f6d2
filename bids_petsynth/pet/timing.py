"""When the frames of a PET scan were measured, and how much each counts in a window."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from bids_petsynth.errors import InputError, UsageError
from bids_petsynth.pet.scan import numbers

MINUTE = 60.0


def frame_times(
    sidecar: Mapping[str, Any], frames: int, who: str
) -> tuple[tuple[np.ndarray, np.ndarray] | None, tuple[str, ...]]:
    """When the frames were measured.

    Parameters
    ----------
    sidecar
        With ``FrameTimesStart`` and ``InjectionStart`` in seconds after ``TimeZero``, ``FrameDuration`` in seconds.
    frames
        Number of frames of the image.
    who
        Name of the scan for messages.

    Returns
    -------
    times
        Starts ``(T,)`` in seconds after injection and durations ``(T,)`` in seconds; None for a single frame whose
        sidecar does not tell.
    notes
        Sentences on what was taken for granted.

    Raises
    ------
    InputError
        If the times are absent for several frames, do not fit the image, contradict each other, or are not in seconds.
    """

    def fail(problem: str, remedy: str) -> InputError:
        return InputError(f"{who}: {problem}; {remedy}.")

    given = {key: _seconds(sidecar, key, who) for key in ("FrameTimesStart", "FrameDuration")}
    absent = " and ".join(key for key, values in given.items() if values is None)
    if absent:
        if frames == 1:
            return None, (f"The sidecar lacks {absent}: the image is taken to be of the window asked for.",)
        raise fail(f"the sidecar lacks {absent} of the {frames} frames", "add them, in seconds")
    starts, durations = given.values()
    if not len(starts) == len(durations) == frames:
        raise fail(
            f"the sidecar has {len(starts)} FrameTimesStart and {len(durations)} FrameDuration where the image has "
            f"{frames} frame{'s' * (frames > 1)}",
            "correct the sidecar, or use the image that belongs to it",
        )
    if (durations <= 0).any() or (np.diff(starts) <= 0).any():
        raise fail(
            "FrameTimesStart does not rise from frame to frame, or a FrameDuration is not above 0",
            "correct the sidecar",
        )
    _check_overlap(starts, durations, fail)
    notes = []
    scan, injection = (_start(sidecar, key, who) for key in ("ScanStart", "InjectionStart"))
    if starts[0] < scan - numbers()["overlap_tolerance"]:
        notes.append("FrameTimesStart begins before ScanStart: it is taken to count from ScanStart.")
        starts = starts + scan
    starts = starts - injection
    _check_seconds(starts, durations, fail)
    if frames > 1 and sidecar.get("ImageDecayCorrected") is False:
        notes.append("The frames are not corrected for decay: the earlier ones weigh too much in the mean.")
    return (starts, durations), tuple(notes)


def _seconds(sidecar: Mapping[str, Any], key: str, who: str) -> np.ndarray | None:
    """Numbers of a sidecar's entry, one or a list, as a list; None if it is absent."""
    value = sidecar.get(key)
    if value is None or value == "n/a" or value == []:
        return None
    try:
        values = np.atleast_1d(np.asarray(value, dtype=float))
    except (TypeError, ValueError):
        values = np.array([math.nan])
    if values.ndim != 1 or not np.isfinite(values).all():
        text = str(value)[:40]
        raise InputError(f"{who}: {key} in the sidecar is {text}, no number of seconds; correct the sidecar.")
    return values


def _start(sidecar: Mapping[str, Any], key: str, who: str) -> float:
    """One time in seconds, 0 where the sidecar lacks it."""
    values = _seconds(sidecar, key, who)
    return 0.0 if values is None else float(values[0])


def _check_overlap(starts: np.ndarray, durations: np.ndarray, fail) -> None:
    """Frames must not overlap."""
    excess = starts[:-1] + durations[:-1] - starts[1:]
    tolerance = numbers()["overlap_tolerance"]
    if not (excess > tolerance).any():
        return
    if np.allclose(durations[:-1], starts[1:], atol=tolerance):
        raise fail("FrameDuration holds the end of each frame", "write how long each one lasts, in seconds")
    frame = int(np.argmax(excess > tolerance))
    raise fail(
        f"frame {frame + 1} ends {excess[frame]:g} s after frame {frame + 2} begins by FrameTimesStart and "
        "FrameDuration",
        "correct the sidecar",
    )


def _check_seconds(starts: np.ndarray, durations: np.ndarray, fail) -> None:
    """Times that no brain scan has are in another unit."""
    limit = numbers()
    end, total = float(starts[-1] + durations[-1]), float(durations.sum())
    reads = f"FrameTimesStart and FrameDuration let the scan end {end:g} s after injection"
    if end > limit["scan_longest"]:
        if limit["scan_shortest"] <= end / 1000 <= limit["scan_longest"]:
            raise fail(f"{reads}, which looks like milliseconds", "BIDS wants seconds: divide them by 1000")
        raise fail(f"{reads}, {end / 3600:.0f} hours", "BIDS wants seconds after TimeZero: correct the sidecar")
    if end <= 0:
        raise fail(f"{reads}, which is before it", "correct FrameTimesStart or InjectionStart in the sidecar")
    if total < limit["scan_shortest"]:
        raise fail(f"the frames last {total:g} s together, which looks like minutes", "BIDS wants seconds")


def window_weights(starts: np.ndarray, durations: np.ndarray, window_min: tuple[float, float]) -> np.ndarray:
    """How much each frame counts in the mean over a window: the seconds of it that lie within.

    A frame that the window cuts counts by the part inside, its mean standing for that part.

    Parameters
    ----------
    starts, durations
        ``(T,)`` seconds after injection and seconds.
    window_min
        Start and end in minutes after injection.

    Returns
    -------
    numpy.ndarray
        ``(T,)``, sum 1.

    Raises
    ------
    UsageError
        If the window is none.
    InputError
        If the frames cover less than half of the window, or reach so far beyond it that less than half of what would be
        averaged lies within.
    """
    low, high = (MINUTE * minutes for minutes in window_min)
    if not 0 <= low < high < math.inf:
        raise UsageError(f"The PET window {window_min[0]:g} to {window_min[1]:g} min is none; give a start and an end.")
    starts, durations = np.asarray(starts, float), np.asarray(durations, float)
    ends = starts + durations
    overlap = np.clip(np.minimum(ends, high) - np.maximum(starts, low), 0, None)
    limit = numbers()
    # a second more or less comes from rounding
    overlap[overlap < limit["overlap_tolerance"]] = 0
    scan = f"{starts[0] / MINUTE:.4g} to {ends[-1] / MINUTE:.4g} min after injection"
    wanted = f"window of {window_min[0]:g} to {window_min[1]:g} min"
    remedy = (
        "give a window that it covers (--pet-window START END, in minutes), or correct FrameTimesStart, FrameDuration "
        "and InjectionStart if they are wrong."
    )
    covered = overlap.sum() / (high - low)
    if covered < limit["window_coverage_min"]:
        raise InputError(f"the scan runs from {scan} and covers {covered:.0%} of the {wanted}; {remedy}")
    weights = overlap / overlap.sum()
    inside = float(weights @ (overlap / durations))
    if inside < limit["window_share_min"]:
        raise InputError(
            f"only {inside:.0%} of what would be averaged lies within the {wanted} (the scan runs from {scan}): frames "
            f"this long cannot be cut; {remedy}"
        )
    return weights
