#!/bin/bash
#SBATCH --job-name=petsynth
#SBATCH --partition=gpu
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=01:00:00
#SBATCH --output=slurm-logs/%x-%A_%a.out
# One task of the array that submit.sh submits: the next CHUNK participants of the list, on one GPU.
# `--device cuda` fails at once where the node's GPU cannot be used, rather than falling back to its CPU.
set -euo pipefail
first=$(((SLURM_ARRAY_TASK_ID - 1) * CHUNK + 1))
mapfile -t labels < <(sed -n "$first,$((first + CHUNK - 1))p" "$PARTICIPANTS")
# shellcheck disable=SC2086  # PETSYNTH and OPTIONS are lists of words
exec $PETSYNTH "$BIDS_DIR" "$OUT_DIR" participant --participant-label "${labels[@]}" --device cuda $OPTIONS
