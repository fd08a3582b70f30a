#!/bin/bash
# Tokenize a large collection in an array of preemptible tasks. Task i of n makes the units u with u mod n = i.
#
#   sbatch --array=0-15 slurm-array.sh shards/ -o tokens.h5
#
# The task that finishes last merges the parts. A preempted task loses at most the unit it was working on and is queued
# again. The array may be resubmitted with another number of tasks: finished units are kept.

#SBATCH --job-name=tokenize
#SBATCH --array=0-15
#SBATCH --gpus=1
#SBATCH --cpus-per-task=12
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.out

# The environment that `make` or pip has installed; VENV=/path/to/another sbatch ... takes another one.
VENV=${VENV:-.venv}
if [ -f "$VENV/bin/activate" ]; then
  source "$VENV/bin/activate"
fi

# Under srun, because SLURM sends the signal to job steps, not to this script.
srun titokctl tokenize "$@" --part "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
code=$?

if [ "$code" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
