#!/bin/sh
# Segment a volume by an array of at least two PBS Pro or OpenPBS jobs:
# submit.sh JOBS SOURCE TARGET [OPTIONS OF dseeds init]
set -eu
JOBS=$1
shift
here=$(dirname "$0")
PLAN=$(dseeds init "$@")
export JOBS PLAN
array=$(qsub -v JOBS,PLAN -J "0-$((JOBS - 1))" "$here/step.sh")
# afterany: other jobs do the share of a killed job, and finalize checks that all is done.
qsub -v PLAN -W "depend=afterany:$array" "$here/finalize.sh"
