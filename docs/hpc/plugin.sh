#!/bin/bash
#SBATCH --job-name=petsynth-plugin
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --time=1-00:00:00
#SBATCH --output=slurm-logs/%x-%j.out
# One long, small job that submits every step of every participant as a job of its own (Nipype's Slurm plugin).
#
#   mkdir -p slurm-logs
#   BIDS_DIR=… OUT_DIR=… WORK_DIR=/scratch/petsynth PLUGIN=docs/hpc/plugin.yml sbatch docs/hpc/plugin.sh
#
# WORK_DIR  a folder that every node sees: the steps hand their files on in it
# PLUGIN    the file that names the plugin and its options
set -euo pipefail
: "${BIDS_DIR:?the BIDS dataset}" "${OUT_DIR:?the output folder}" "${WORK_DIR:?a folder that every node sees}"
mkdir -p "$WORK_DIR"
# The threads of a step are those of its own job, not of this one.
# shellcheck disable=SC2086  # PETSYNTH and OPTIONS are lists of words
exec ${PETSYNTH:-bids-petsynth} "$BIDS_DIR" "$OUT_DIR" participant --use-plugin "${PLUGIN:?the plugin file}" \
    --work-dir "$WORK_DIR" --nprocs "${STEP_CPUS:-4}" --omp-nthreads "${STEP_CPUS:-4}" --device cpu ${OPTIONS:-}
