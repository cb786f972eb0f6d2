#!/bin/bash
# Submit a whole dataset: an array over its participants, then the cohort report.
#
#   BIDS_DIR=/data/study OUT_DIR=/data/study/derivatives/petsynth bash docs/hpc/submit.sh [cpu|gpu]
#
# BIDS_DIR, OUT_DIR  dataset and output folder, both on storage that every node sees
# OPTIONS            options of `participant`, such as "--tracer AV45 FDG"
# GROUP_OPTIONS      options of `group`, such as "--model FOLDER --diagnosis COLUMN"
# PETSYNTH           how the program is called (default: bids-petsynth), such as
#                    "apptainer run --nv --cleanenv --containall -B /data petsynth.sif"
# CHUNK              participants per task (default: 1); more where the scheduler limits the number of tasks
# MOST               tasks that may run at the same time (default: 100)
# SBATCH_ARGS        further options of sbatch, such as "--account=lab --partition=short"
set -euo pipefail
: "${BIDS_DIR:?the BIDS dataset}" "${OUT_DIR:?the output folder}"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
kind=${1:-cpu}
mkdir -p slurm-logs

# The list is frozen here: the number of a task means the same participant for as long as the array runs.
export PARTICIPANTS=$PWD/slurm-logs/participants-$(date +%Y%m%dT%H%M%S)-$$.txt
find -L "$BIDS_DIR" -mindepth 1 -maxdepth 1 -type d -name 'sub-*' -printf '%f\n' | sort >"$PARTICIPANTS"
count=$(wc -l <"$PARTICIPANTS")
((count)) || { echo "submit.sh: $BIDS_DIR has no folder sub-<label>." >&2; exit 2; }

export BIDS_DIR OUT_DIR OPTIONS=${OPTIONS:-} PETSYNTH=${PETSYNTH:-bids-petsynth} CHUNK=${CHUNK:-1}
tasks=$(((count + CHUNK - 1) / CHUNK))
# shellcheck disable=SC2086  # SBATCH_ARGS is a list of words
array=$(sbatch --parsable ${SBATCH_ARGS:-} --array="1-$tasks%${MOST:-100}" "$here/participant_$kind.sh")
# shellcheck disable=SC2086
group=$(sbatch --parsable ${SBATCH_ARGS:-} --dependency="afterok:${array%%;*}" --kill-on-invalid-dep=yes "$here/group.sh")
echo "participants: job ${array%%;*}, $tasks tasks; group: job ${group%%;*}; output in $PWD/slurm-logs"
