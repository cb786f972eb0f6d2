"""What one participant costs, as a ratio to a reference job measured in turn in the same run.

    python benchmarks/cost.py DATA/ixi sub-IXI212 TEMPLATEFLOW_HOME [--repeats 3]

The reference job is antspyx on the same scan: N4 (shrink 4), affine, SyN quick onto the MNI template at 2 mm. Both run
as whole processes with two threads; CPU time and peak memory are the operating system's accounting. ``--help`` and
``--version`` are timed against ``python -c "import numpy"``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REFERENCE = """
import sys, ants
scan, template, mask = sys.argv[1:4]
image = ants.n4_bias_field_correction(ants.image_read(scan), shrink_factor=4)
fixed = ants.image_read(template)
affine = ants.registration(fixed, image, "Affine")
ants.registration(fixed, image, "antsRegistrationSyNQuick[s]", initial_transform=affine["fwdtransforms"][0])
"""


def measure(command: list[str], environment: dict[str, str]) -> tuple[float, float, float]:
    """CPU seconds, wall seconds and peak memory in GiB (largest process) of a command."""
    began = time.perf_counter()
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{command} ended with status {status}")
    return usage.ru_utime + usage.ru_stime, time.perf_counter() - began, usage.ru_maxrss / 2**20


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("participant")
    parser.add_argument("templateflow", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    label = arguments.participant.removeprefix("sub-")
    scan = next((arguments.dataset / f"sub-{label}" / "anat").glob("*_T1w.nii.gz"))
    template = next(arguments.templateflow.rglob("*MNI152NLin2009cAsym_res-02_T1w.nii.gz"))
    mask = next(arguments.templateflow.rglob("*MNI152NLin2009cAsym_res-02_desc-brain_mask.nii.gz"))
    environment = os.environ | {"OMP_NUM_THREADS": "2", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "2"}
    tool = Path(sys.executable).with_name("bids-petsynth")
    rows = {"reference": [], "participant": [], "help": [], "version": [], "numpy": []}
    for _ in range(arguments.repeats):
        rows["reference"].append(
            measure([sys.executable, "-c", REFERENCE, str(scan), str(template), str(mask)], environment)
        )
        with tempfile.TemporaryDirectory() as out:
            command = [str(tool), str(arguments.dataset), out, "participant", "--participant-label", label]
            rows["participant"].append(measure([*command, "--device", "cpu"], environment))
    for _ in range(5):
        rows["numpy"].append(measure([sys.executable, "-c", "import numpy"], environment))
        rows["help"].append(measure([str(tool), "--help"], environment))
        rows["version"].append(measure([str(tool), "--version"], environment))
    middle = {
        name: [statistics.median(column) for column in zip(*values, strict=True)] for name, values in rows.items()
    }
    for name, (cpu, wall, memory) in middle.items():
        print(f"{name}: CPU {cpu:.2f} s, wall {wall:.2f} s, peak {memory:.2f} GiB (median)")
    print(f"participant / reference, CPU time: {middle['participant'][0] / middle['reference'][0]:.2f}")
    for name in ("help", "version"):
        print(f"--{name} / import numpy, CPU time: {middle[name][0] / middle['numpy'][0]:.2f}")


if __name__ == "__main__":
    main()
