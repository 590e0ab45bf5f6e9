#!/bin/sh
# A volume as an array of SLURM jobs: submit.sh JOBS SOURCE TARGET [OPTIONS OF dseeds init]
set -eu
jobs=$1
shift
here=$(dirname "$0")
plan=$(dseeds init "$@")
array=$(sbatch --parsable --array="0-$((jobs - 1))" "$here/job.sh" step "$plan" --wait)
# After any end: jobs that were killed do not matter if others did their share, and finalize finds out.
sbatch --parsable --dependency="afterany:${array%%;*}" "$here/job.sh" finalize "$plan"
