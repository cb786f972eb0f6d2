#!/bin/bash
#SBATCH --job-name=petsynth-train
#SBATCH --partition=gpu
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=32
#SBATCH --mem=128G
#SBATCH --time=2-00:00:00
#SBATCH --output=slurm-logs/%x-%j.out
# Training on several nodes: one torchrun on each, which starts a process per GPU.
#
#   mkdir -p slurm-logs
#   BIDS_DIR=… OUT_DIR=… OPTIONS="--name ours" sbatch docs/hpc/train.sh
#
# PROCS  processes per node (default: the GPUs of the node that Slurm grants, 1 without)
# PORT   port on which the nodes meet (default: one made from the number of the job)
set -euo pipefail
: "${BIDS_DIR:?the BIDS dataset}" "${OUT_DIR:?the output folder}"
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
procs=${PROCS:-${SLURM_GPUS_ON_NODE:-1}}
# srun does not take the number of cores from the batch job by itself in every version of Slurm.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
export OMP_NUM_THREADS=$((SRUN_CPUS_PER_TASK / procs > 0 ? SRUN_CPUS_PER_TASK / procs : 1))
# shellcheck disable=SC2086  # TORCHRUN and OPTIONS are lists of words
srun --kill-on-bad-exit=1 ${TORCHRUN:-torchrun} --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="$procs" \
    --rdzv-id="$SLURM_JOB_ID" --rdzv-backend=c10d --rdzv-endpoint="$head:${PORT:-$((20000 + SLURM_JOB_ID % 10000))}" \
    -m bids_petsynth.cli.main "$BIDS_DIR" "$OUT_DIR" train ${OPTIONS:-}
