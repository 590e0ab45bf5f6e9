#!/bin/sh
#SBATCH --job-name=dseeds
#SBATCH --cpus-per-task=1
#SBATCH --mem=3G
#SBATCH --time=1-00:00:00
#SBATCH --requeue
exec dseeds "$@"
