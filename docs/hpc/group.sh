#!/bin/bash
#SBATCH --job-name=petsynth-group
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --time=00:30:00
#SBATCH --output=slurm-logs/%x-%j.out
# The cohort report, once every task of the array has ended well (submit.sh sets the dependency).
set -euo pipefail
# shellcheck disable=SC2086  # PETSYNTH is a list of words
exec $PETSYNTH "$BIDS_DIR" "$OUT_DIR" group
