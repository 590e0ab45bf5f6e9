"""The scripts for batch systems, with stand-ins for the submit commands that run the jobs on this machine."""

import subprocess
import sys

import numpy as np
import pytest

from dseeds import supervoxels
from tests.support.batches import IMAGE
from tests.support.paths import ROOT
from tests.support.runs import as_zarr, labels_in

DEPLOY = ROOT / "deploy"
# Like the real one, it copies the script, and prints the array's number with the cluster's.
SBATCH = """#!/bin/sh
set -eu
echo "$*" >> "$SPOOL/calls"
while [ "${1#--}" != "$1" ]; do
    case $1 in
        --parsable) ;;
        --array=0-*) last=${1#--array=0-} ;;
        --dependency=afterany:42) ;;
        *) echo "unknown option $1" >&2; exit 1 ;;
    esac
    shift
done
script=$SPOOL/slurm_script
cp "$1" "$script"
shift
if [ -z "${last-}" ]; then
    sh "$script" "$@" >> "$SPOOL/log" 2>&1
    echo 43
    exit
fi
for index in $(seq 0 "$last"); do
    SLURM_ARRAY_TASK_ID=$index SLURM_ARRAY_TASK_COUNT=$((last + 1)) SLURM_ARRAY_TASK_MIN=0 SLURM_ARRAY_TASK_MAX=$last \\
        SLURM_ARRAY_TASK_STEP=1 sh "$script" "$@" >> "$SPOOL/log" 2>&1 &
done
wait
echo "42;cluster"
"""
# Jobs get only the requested environment, and PATH under another name.
QSUB = """#!/bin/sh
set -eu
echo "$*" >> "$SPOOL/calls"
while getopts v:J:W: option; do
    case $option in
        v) names=$OPTARG ;;
        J) last=${OPTARG#0-} ;;
        W) [ "$OPTARG" = "depend=afterany:42[].server" ] ;;
        *) exit 1 ;;
    esac
done
shift $((OPTIND - 1))
for name in $(echo "$names" | tr , ' '); do
    eval "value=\\$$name"
    set -- "$@" "$name=$value"
done
script=$1
shift
for index in $(seq 0 "${last:-0}"); do
    env -i PBS_O_PATH="$PATH" PATH=/usr/bin:/bin PBS_ARRAY_INDEX="$index" "$@" sh "$script" >> "$SPOOL/log" 2>&1 &
done
wait
[ -z "${last-}" ] && echo 43.server || echo "42[].server"
"""
AWS = """#!{python}
import json, os, subprocess, sys
from pathlib import Path

spool = Path(os.environ["SPOOL"])
with (spool / "calls").open("a") as calls:
    print(*sys.argv[1:], file=calls)
assert sys.argv[1:3] == ["batch", "submit-job"]
options = dict(zip(sys.argv[3::2], sys.argv[4::2], strict=True))
definition = json.loads(Path({definition!r}).read_text())
assert options.pop("--job-definition") == definition["jobDefinitionName"]
assert options.pop("--job-queue") == "my-queue"
assert (options.pop("--query"), options.pop("--output")) == ("jobId", "text")
command = definition["containerProperties"]["command"]
size = 1
if "--array-properties" in options:
    size = int(options["--array-properties"].removeprefix("size="))
    name, _, value = options["--parameters"].partition("=")
    command = [value if word == f"Ref::{{name}}" else word for word in command]
else:
    assert options["--depends-on"] == "jobId=42"
    command = options["--container-overrides"].removeprefix("command=").split(",")
with (spool / "log").open("a") as log:
    for index in range(size):
        own = {{"AWS_BATCH_JOB_ARRAY_INDEX": str(index), "AWS_BATCH_JOB_ARRAY_SIZE": str(size)}} if size > 1 else {{}}
        last = subprocess.Popen(["dseeds", *command], env={{**os.environ, **own}}, stdout=log, stderr=log)
        jobs = [*jobs, last] if index else [last]
    assert not any(job.wait() for job in jobs)
print(42 if size > 1 else 43)
"""


@pytest.fixture
def submit(tmp_path, environment):
    """Call a script with the submit command and `dseeds` on the path."""
    spool = tmp_path / "spool"
    spool.mkdir()
    kept = {name: environment[name] for name in ("PYTHONPATH", "DSEEDS_CACHE_DIR")}
    variables = " ".join(f"{name}='{value}'" for name, value in kept.items())
    aws = AWS.format(python=sys.executable, definition=str(DEPLOY / "aws" / "job.json"))
    dseeds = f'#!/bin/sh\n{variables} exec {sys.executable} -m dseeds "$@"\n'
    for name, text in (("sbatch", SBATCH), ("qsub", QSUB), ("aws", aws), ("dseeds", dseeds)):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def submit(script, *arguments):
        path = f"{tmp_path / 'bin'}:{environment['PATH']}"
        called = subprocess.run(
            [DEPLOY / script, *map(str, arguments)],
            env={**environment, "PATH": path, "SPOOL": str(spool)},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        log = (spool / "log").read_text() if (spool / "log").exists() else ""
        assert called.returncode == 0, (called.stderr, log)
        return called.stdout, (spool / "calls").read_text().splitlines(), log

    return submit


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "before", "answer"),
    [("slurm/submit.sh", (), "43"), ("pbs/submit.sh", (), "43.server"), ("aws/submit.sh", ("my-queue",), "43")],
)
def test_a_script_submits_an_array_and_the_job_that_publishes(tmp_path, submit, script, before, answer):
    source, target = as_zarr(tmp_path / "an image.zarr", IMAGE, 16), tmp_path / "labels.zarr"
    out, calls, log = submit(script, *before, 2, source, target, "--step", 3, "--region", "12,12,24")
    assert out.strip() == answer
    assert len(calls) == 2
    assert log.count("regions done by this job") == 2
    np.testing.assert_array_equal(labels_in(target), supervoxels(IMAGE, step=3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["an image.zarr", "bin", "labels.zarr", "spool"]
