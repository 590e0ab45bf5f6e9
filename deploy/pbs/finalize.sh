#!/bin/sh
#PBS -N dseeds-finalize
#PBS -l select=1:ncpus=1:mem=3gb
#PBS -l walltime=24:00:00
PATH=$PBS_O_PATH exec dseeds finalize "$PLAN"
