#!/usr/bin/env bash
# Every row of the ablation table in docs/results.md: baselines, each term alone, the presets.
#
#   scripts/ablation_cifar10.sh [--ipc 10] [--budget cpu|full] [--out results/ablation] [--rows "dm style best"] [-- FLAGS]
#
# cpu: the short runs that docs/results.md prints; full: the paper's 20,000 iterations and 5 x 5 evaluations, for a GPU.
# FLAGS go to every row, for instance `--out results/fashion -- --dataset FashionMNIST`. Stopped and started again, it goes
# on: a finished row reports and does nothing else. The table: python collect_results.py OUT/ipcN
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
ipc=10 budget=cpu out=results/ablation rows="random herding kmeans dm mm cm icd icd_spread published paper style best"
while (($#)); do
    if [[ $1 != -- && $# -lt 2 ]]; then echo "error: $1 wants a value" >&2 && exit 2; fi
    case $1 in
        --ipc) ipc=$2 ;;
        --budget) budget=$2 ;;
        --out) out=$2 ;;
        --rows) rows=$2 ;;
        --) shift && break ;;
        *) echo "error: unknown argument $1: choose from --ipc, --budget, --out, --rows, --" >&2 && exit 2 ;;
    esac
    shift 2
done

case $budget in
    cpu)
        method="--preset fast,PRESET --Iteration 300" proxy="--proxy_epochs 5"
        evaluation="--num_exp 3 --num_eval 2 --epoch_eval_train 300 --compile on" # bf16 where the CPU is fast at it
        ;;
    full)
        method="--preset PRESET" proxy=""
        evaluation="--num_exp 5 --num_eval 5 --precision bf16" # the same for short and long rows
        ;;
    *) echo "error: --budget $budget: choose cpu or full" >&2 && exit 2 ;;
esac

flags_of() { # the command of a row
    case $1 in
        random | herding | kcenter | kmeans | forgetting | uncertainty | el2n | grand)
            echo "coreset.py --method $1 $proxy" ;;
        dm | published | paper | style | best) echo "DM_DDM.py ${method/PRESET/$1} --eval_every 0" ;;
        mm) echo "DM_DDM.py ${method/PRESET/dm} --eval_every 0 --mm_ratio 10000" ;;
        cm) echo "DM_DDM.py ${method/PRESET/dm} --eval_every 0 --cm_ratio 10000" ;;
        icd) echo "DM_DDM.py ${method/PRESET/dm} --eval_every 0 --icd_ratio 10" ;;
        icd_spread) echo "DM_DDM.py ${method/PRESET/dm} --eval_every 0 --icd_ratio 10 --icd_form spread" ;;
        *) echo "error: unknown row $1" >&2 && return 2 ;;
    esac
}

for row in $rows; do
    command=$(flags_of "$row")
    echo "== $row: $command"
    # Words on purpose: every flag is one.
    # shellcheck disable=SC2086
    "${PYTHON:-python}" "$here"/$command $evaluation --ipc "$ipc" --save_path "$out/ipc$ipc/$row" "$@"
done
"${PYTHON:-python}" "$here/collect_results.py" "$out/ipc$ipc"
