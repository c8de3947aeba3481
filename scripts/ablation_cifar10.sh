#!/usr/bin/env bash
# All rows of the ablation tables in docs/results.md: baselines, L_MMD with single terms, presets.
#
#   scripts/ablation_cifar10.sh [--ipc 10] [--budget cpu|full] [--out results/ablation] [--rows "dm style best"] [-- FLAGS]
#
# cpu: the short runs in docs/results.md. full: the paper's 20,000 iterations and 5 x 5 evaluations, for a GPU.
# FLAGS are added to every row, such as `--out results/fashion -- --dataset FashionMNIST`. The same command resumes after
# a stop; a finished row only prints its results. For the table only: python -m ddm collect OUT/ipcN --columns none
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
default_out=results/ablation
rows="random herding kmeans dm mm cm icd icd_spread published paper style best"
source "$here/scripts/rows.sh"

flags_of() { # the command of a row
    case $1 in
        random | herding | kcenter | kmeans | forgetting | uncertainty | el2n | grand)
            echo "coreset --method $1 $proxy" ;;
        dm | published | paper | style | best) echo "condense ${method/PRESET/$1}" ;;
        mm) echo "condense ${method/PRESET/dm} --mm_ratio 10000" ;;
        cm) echo "condense ${method/PRESET/dm} --cm_ratio 10000" ;;
        icd) echo "condense ${method/PRESET/dm} --icd_ratio 10" ;;
        icd_spread) echo "condense ${method/PRESET/dm} --icd_ratio 10 --icd_form spread" ;;
        *) echo "error: unknown row $1" >&2 && return 2 ;;
    esac
}

run_rows "$@"
