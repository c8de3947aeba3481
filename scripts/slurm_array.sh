#!/usr/bin/env bash
#SBATCH --job-name=ddm --array=0-11 --gres=gpu:1 --time=08:00:00 --signal=B:TERM@120 --open-mode=append
# A sweep as a Slurm array, one run per task. Submit it from the root of the repository: `sbatch scripts/slurm_array.sh
# [FLAGS of ddm condense]`. The same submission resumes. For the table: `ddm collect results/sweep --group_by auto`.
set -euo pipefail
values=(0 1000 10000 100000) seeds=(0 1 2) # --array has one task per pair
task=${SLURM_ARRAY_TASK_ID:?is not set. Submit this script: sbatch scripts/slurm_array.sh}
value=${values[task / ${#seeds[@]}]} seed=${seeds[task % ${#seeds[@]}]}
exec "${PYTHON:-python}" -m ddm condense --preset dm --cm_ratio "$value" --seed "$seed" --num_exp 1 --num_eval 5 \
    --save_path "${OUT:-results/sweep}/cm_ratio_$value/seed_$seed" "$@" # exec: the signal reaches Python
