#!/usr/bin/env bash
# How the settings of presets best and fast were chosen, on validation splits: the table of docs/results.md.
#
#   scripts/choose_presets.sh [--sets "Digits/10 CIFAR10/1"] [--rows "dm best"] [--budget cpu|full] [--out DIR] [-- FLAGS]
#
# A set is DATASET/IPC. Rows: PRESET or PRESET-OPTIMIZER-LR; then _WEIGHT for another rr_ratio; then +noclip for
# --no-clip_pixels. Each row has one condensation and two networks. The last table has the mean rank of each row over the sets.
# The same command resumes.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
default_out=results/choose experiments=1 networks=2
rows="dm best_3 best_3+noclip best_1+noclip"
sets="Digits/1 Digits/10 Digits/50 FashionMNIST/1 FashionMNIST/10 CIFAR10/1 CIFAR10/10 CIFAR10/50 CIFAR100/1"
source "$here/scripts/rows.sh"

flags_of() { # the command of a row
    local row=${1%+noclip} more=""
    if [[ $1 == *+noclip ]]; then more=" --no-clip_pixels"; fi
    if [[ $row == *_* ]]; then more+=" --rr_ratio ${row#*_}"; fi
    local preset optimizer lr
    IFS=- read -r preset optimizer lr <<<"${row%%_*}"
    case $preset in
        dm | style | paper | best) ;;
        *) echo "error: unknown row $1" >&2 && return 2 ;;
    esac
    echo "condense ${method/PRESET/$preset} --eval_split val ${optimizer:+--optimizer $optimizer} ${lr:+--lr_img $lr}$more"
}

for own in "$@"; do if show_help "$own"; then exit; fi; done
arguments=() out=$default_out
while (($#)) && [[ $1 != -- ]]; do
    if [[ -z ${2:-} ]]; then echo "error: $1 needs a value" >&2 && exit 2; fi
    case $1 in
        --sets) sets=$2 ;;
        --out) out=$2 ;;
        *) arguments+=("$1" "$2") ;;
    esac
    shift 2
done
if (($#)); then shift; fi
for set in $sets; do
    if [[ ! $set =~ ^[^/]+/[0-9]+$ ]]; then
        echo "error: --sets $set: give DATASET/IPC, such as CIFAR10/10" >&2
        exit 2
    fi
done
for set in $sets; do
    run_rows --ipc "${set#*/}" --out "$out/${set%/*}" "${arguments[@]}" -- --dataset "${set%/*}" "$@"
done
"${PYTHON:-python}" "$here/scripts/mean_rank.py" "$out"
