#!/bin/bash
# Run one command on several machines. A launcher on each machine starts one process per GPU.
#
#   sbatch --nodes=4 slurm.sh tokenize shards/ -o tokens.h5
#   sbatch --nodes=2 slurm.sh train-gen tokens.h5 --gpus all
#
# Five minutes before its time limit, and when it is preempted, the job saves its state, exits with code 75, and is
# requeued. The same command resumes where it stopped. All machines must see the same files.

#SBATCH --job-name=titokctl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

# The environment that `make` or pip has installed; VENV=/path/to/another sbatch ... takes another one.
VENV=${VENV:-.venv}
if [ -f "$VENV/bin/activate" ]; then
  source "$VENV/bin/activate"
fi

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))

# In single quotes, because a machine's number is set on that machine only.
srun bash -c 'exec titokctl "$@" --nodes "$SLURM_NNODES" --node-rank "$SLURM_NODEID"' titokctl "$@" \
  --rdzv-endpoint "$first:$port"
code=$?

if [ "$code" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
