#!/bin/sh
#SBATCH --job-name=dseeds
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=3G
#SBATCH --time=1-00:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# One thread, because the job has one core.
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 BLOSC_NTHREADS=1
exec dseeds "$@"
