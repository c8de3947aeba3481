#!/usr/bin/env bash
# The published commands, whole, and plain DM the same way: the first table of docs/results.md.
#
#   scripts/published_cifar10.sh [--ipc 10] [--out results/published] [--rows "dm gram"] [-- FLAGS]
#
# One condensation of 20,000 iterations of 256 real images per row, and 5 networks of 1,001 epochs every 2,000 iterations.
# An H100 would take 3 minutes for a row, a CPU core 5 to 14 hours. FLAGS are added to every row. The same command
# resumes after a stop.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
default_out=results/published
rows="dm gram moments diversity paper"
fixed_evaluation="--num_exp 1 --num_eval 5 --eval_every 2000"
source "$here/scripts/rows.sh"

flags_of() { # the command of a row
    case $1 in
        dm) echo "DM_GramMatching.py --dataset CIFAR10 --style_ratio 0" ;;
        gram) echo "DM_GramMatching.py --dataset CIFAR10" ;;
        moments) echo "DM_MeanStd_Matching.py --dataset CIFAR10" ;;
        diversity) echo "DM_KNearest.py --dataset CIFAR10" ;;
        paper) echo "DM_DDM.py --preset paper --dataset CIFAR10" ;;
        *) echo "error: unknown row $1" >&2 && return 2 ;;
    esac
}

run_rows "$@"
