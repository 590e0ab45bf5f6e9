#!/bin/sh
# A volume as an array of PBS Pro or OpenPBS jobs, two at least: submit.sh JOBS SOURCE TARGET [OPTIONS OF dseeds init]
set -eu
JOBS=$1
shift
here=$(dirname "$0")
PLAN=$(dseeds init "$@")
export JOBS PLAN
array=$(qsub -v JOBS,PLAN -J "0-$((JOBS - 1))" "$here/step.sh")
# After any end: jobs that were killed do not matter if others did their share, and finalize finds out.
qsub -v PLAN -W "depend=afterany:$array" "$here/finalize.sh"
