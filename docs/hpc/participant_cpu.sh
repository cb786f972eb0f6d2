#!/bin/bash
#SBATCH --job-name=petsynth
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=01:00:00
#SBATCH --output=slurm-logs/%x-%A_%a.out
# One task of the array that submit.sh submits: the next CHUNK participants of the list, on CPU.
# Cores and memory need no options: the program reads what Slurm grants.
set -euo pipefail
first=$(((SLURM_ARRAY_TASK_ID - 1) * CHUNK + 1))
mapfile -t labels < <(sed -n "$first,$((first + CHUNK - 1))p" "$PARTICIPANTS")
# shellcheck disable=SC2086  # PETSYNTH and OPTIONS are lists of words
exec $PETSYNTH "$BIDS_DIR" "$OUT_DIR" participant --participant-label "${labels[@]}" --device cpu $OPTIONS
