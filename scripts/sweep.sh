#!/usr/bin/env bash
# A sweep of one setting of `ddm condense`, or of a recipe, over seeds: by default the weight of the style term L_CM,
# where 0 is plain DM.
#
#   scripts/sweep.sh [--setting cm_ratio] [--values "0 1000 10000 100000"] [--seeds "0 1 2"] [--ipc 10]
#                    [--recipe FILE.py] [--budget cpu|full] [--out results/sweep] [--rows "cm_ratio_0/seed_0 ..."]
#                    [-- FLAGS]
#
# Each run has a folder, OUT/ipcN/SETTING_VALUE/seed_S. cpu: 300 iterations, 1 condensation and 3 networks per run. full:
# the paper's 20,000 iterations, 5 condensations and 5 networks. FLAGS are added to every run, such as `-- --dataset
# CIFAR100`. The table at the end has the mean over seeds. The same command resumes after a stop; more values or seeds
# extend the sweep. A recipe, such as DM_GramMatching.py or yours, runs without preset dm.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
default_out=results/sweep experiments=1 rows="" collect_flags="--group_by auto"
setting=cm_ratio values="0 1000 10000 100000" seeds="0 1 2" recipe=condense options="setting values seeds recipe"
source "$here/scripts/rows.sh"

default_rows() {
    for value in $values; do for seed in $seeds; do echo "${setting}_$value/seed_$seed"; done; done
}

flags_of() { # the command of a row
    local value=${1%/seed_*} flags=$method
    if [[ $1 != "${setting}"_*/seed_* ]]; then echo "error: unknown row $1" >&2 && return 2; fi
    if [[ $recipe == condense ]]; then flags=${flags/PRESET/dm}; fi
    flags=${flags/,PRESET/}
    echo "$recipe ${flags/--preset PRESET/} --$setting ${value#"${setting}_"} --seed ${1##*/seed_}"
}

run_rows "$@"
