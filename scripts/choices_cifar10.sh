#!/usr/bin/env bash
# The effect of each weight and choice of the terms, on the validation split: the tables "Choices" of docs/tried.md.
#
#   scripts/choices_cifar10.sh [--ipc 10] [--budget cpu|full] [--out results/choices] [--rows "dm cm_1000 k_4"] [-- FLAGS]
#
# Rows: TERM_WEIGHT (TERM: mm, cm, icd, spread, rr); TAP-STATISTICS-SCALE for both style terms (TAP: conv, norm, act, pool;
# STATISTICS: image, batch; SCALE: abs, rel); k_K for the neighbours of L_ICD; mm-WEIGHT+cm-WEIGHT for preset style. Each
# row has one condensation and one network: differences below a point mean little. The same command resumes after a stop.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
default_out=results/choices experiments=1 networks=1
rows="dm mm_100 mm_1000 mm_10000 mm_100000 cm_100 cm_1000 cm_10000 cm_100000 icd_1 icd_3 icd_10 icd_30 \
spread_0.3 spread_1 spread_3 spread_10 rr_3 rr_10 rr_30 rr_100 k_1 k_2 k_4 k_9"
for tap in conv norm act pool; do
    for statistics in image batch; do for scale in abs rel; do rows+=" $tap-$statistics-$scale"; done; done
done
source "$here/scripts/rows.sh"

flags_of() { # the command of a row
    local base="condense ${method/PRESET/dm} --eval_split val" number=${1#*_}
    case $1 in
        dm) echo "$base" ;;
        mm_*) echo "$base --mm_ratio $number" ;;
        cm_*) echo "$base --cm_ratio $number" ;;
        icd_*) echo "$base --icd_ratio $number" ;;
        spread_*) echo "$base --icd_ratio $number --icd_form spread" ;;
        rr_*) echo "$base --rr_ratio $number" ;;
        k_*) echo "$base --icd_ratio 10 --k $number" ;;
        mm-*+cm-*) local mm=${1#mm-} && echo "condense ${method/PRESET/style} --eval_split val --mm_ratio ${mm%+cm-*} --cm_ratio ${1##*-}" ;;
        *-*-abs) # weights of the published scripts
            IFS=- read -r tap statistics _ <<<"$1"
            echo "$base --style_tap $tap --style_stats $statistics --mm_ratio 10000 --cm_ratio 10000" ;;
        *-*-rel) # weights of preset style
            IFS=- read -r tap statistics _ <<<"$1"
            echo "condense ${method/PRESET/style} --eval_split val --style_tap $tap --style_stats $statistics" ;;
        *) echo "error: unknown row $1" >&2 && return 2 ;;
    esac
}

run_rows "$@"
