#!/bin/sh
#PBS -N dseeds
#PBS -l select=1:ncpus=1:mem=3gb
#PBS -l walltime=24:00:00
#PBS -r y
# One thread, because the job has one core.
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 BLOSC_NTHREADS=1
PATH=$PBS_O_PATH exec dseeds step "$PLAN" --wait --count "$JOBS"
