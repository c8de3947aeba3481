#!/usr/bin/env bash
# A class-incremental table and plot as in docs/results.md: CIFAR10 in 5 steps of 2 classes, 10 images per class.
#
#   scripts/continual_cifar10.sh [OUT] [FLAGS of ddm continual]        # results/continual by default
#
# The same command resumes after a stop.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
source "$here/scripts/rows.sh"
if show_help "$@"; then exit; fi
if [[ ${1:-} == -* ]]; then set -- results/continual "$@"; fi # flags alone
out=${1:-results/continual}
exec "${PYTHON:-python}" -m ddm continual --dataset CIFAR10 --steps 5 --ipc 10 --memory dm,random,herding,paper,best --seeds 3 --preset fast \
    --Iteration 200 --proxy_epochs 3 --epoch_eval_train 200 --compile on --save_path "$out" "${@:2}"
