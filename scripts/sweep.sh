#!/usr/bin/env bash
# A sweep of one setting of `ddm condense` over seeds: by default the weight of the style term L_CM, where 0 is plain DM.
#
#   scripts/sweep.sh [--setting cm_ratio] [--values "0 1000 10000 100000"] [--seeds "0 1 2"] [--ipc 10]
#                    [--budget cpu|full] [--out results/sweep] [--rows "cm_ratio_0/seed_0 ..."] [-- FLAGS]
#
# Each run has a folder, OUT/ipcN/SETTING_VALUE/seed_S. cpu: 300 iterations, 1 condensation and 3 networks per run. full:
# the paper's 20,000 iterations, 5 condensations and 5 networks. FLAGS are added to every run, such as `-- --dataset
# CIFAR100`. The table at the end has the mean over seeds. The same command resumes after a stop; more values or seeds
# extend the sweep.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
default_out=results/sweep experiments=1 rows="" collect_flags="--group_by auto"
setting=cm_ratio values="0 1000 10000 100000" seeds="0 1 2" options="setting values seeds"
source "$here/scripts/rows.sh"

default_rows() {
    for value in $values; do for seed in $seeds; do echo "${setting}_$value/seed_$seed"; done; done
}

flags_of() { # the command of a row
    local value=${1%/seed_*}
    if [[ $1 != "${setting}"_*/seed_* ]]; then echo "error: unknown row $1" >&2 && return 2; fi
    echo "condense ${method/PRESET/dm} --$setting ${value#"${setting}_"} --seed ${1##*/seed_}"
}

run_rows "$@"
