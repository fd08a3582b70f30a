#!/bin/bash
# A large collection by many small jobs that come and go: each takes the units that no other has.
#
#   sbatch --array=0-15 slurm-array.sh shards/ -o tokens.h5
#
# Whichever job ends last makes the output. Preempted jobs lose the unit in hand at most and are queued again; another
# number of jobs may go on with what these left.

#SBATCH --job-name=tokenize
#SBATCH --array=0-15
#SBATCH --gpus=1
#SBATCH --cpus-per-task=12
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append

# Under srun, since SLURM sends its signal to steps and not to this script.
srun titokctl tokenize "$@" --part "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
code=$?

if [ "$code" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
