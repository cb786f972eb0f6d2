#!/bin/bash
#SBATCH --job-name=petsynth-group
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --time=00:30:00
#SBATCH --output=slurm-logs/%x-%j.out
# The cohort report, once every task of the array has ended well (submit.sh sets the dependency). Where the dataset has
# real PET, which is prepared here (8 to 21 s a scan and core), ask for more cores and time.
set -euo pipefail
# shellcheck disable=SC2086  # PETSYNTH and GROUP_OPTIONS are lists of words
exec ${PETSYNTH:-bids-petsynth} "$BIDS_DIR" "$OUT_DIR" group ${GROUP_OPTIONS:-}
