#!/bin/sh
# Segment a volume by an array of at least two AWS Batch jobs:
# submit.sh QUEUE JOBS SOURCE TARGET [OPTIONS OF dseeds init]
set -eu
queue=$1
jobs=$2
shift 2
plan=$(dseeds init "$@")
array=$(aws batch submit-job --job-name dseeds --job-queue "$queue" --job-definition dseeds \
    --array-properties "size=$jobs" --parameters "plan=$plan" --query jobId --output text)
aws batch submit-job --job-name dseeds-finalize --job-queue "$queue" --job-definition dseeds \
    --depends-on "jobId=$array" --container-overrides "command=finalize,$plan" --query jobId --output text
