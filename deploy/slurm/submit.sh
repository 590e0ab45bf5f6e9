#!/bin/sh
# Segment a volume by an array of SLURM jobs: submit.sh JOBS SOURCE TARGET [OPTIONS OF dseeds init]
set -eu
jobs=$1
shift
here=$(dirname "$0")
plan=$(dseeds init "$@")
array=$(sbatch --parsable --array="0-$((jobs - 1))" "$here/job.sh" step "$plan" --wait)
# afterany: other jobs do the share of a killed job, and finalize checks that all is done.
sbatch --parsable --dependency="afterany:${array%%;*}" "$here/job.sh" finalize "$plan"
