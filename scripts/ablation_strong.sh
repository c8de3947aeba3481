#!/usr/bin/env bash
# The ablation of docs/strong.md: what split images, cross-entropy and trained networks are worth, one after the other.
#
#   scripts/ablation_strong.sh [--ipc 10] [--budget cpu|full] [--out results/strong] [--rows "dm_factor strong"] [-- FLAGS]
#
# Rows: dm, best (plain images); dm_factor, best_factor (split images); strong, and one change of it each: no_factor, no_ce, no_rr
# (without split images, L_CE, L_RR), fresh, trained, online (these networks alone), style and icd (with balanced style terms, with
# L_ICD). All rows share one pool of trained networks. The same command resumes; a finished row only prints its results.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
default_out=results/strong
rows="dm best dm_factor best_factor strong no_factor no_ce no_rr fresh trained online style icd"
source "$here/scripts/rows.sh"

flags_of() { # the command of a row
    local strong="condense ${method/PRESET/strong}"
    case $1 in
        dm | best) echo "condense ${method/PRESET/$1}" ;;
        dm_factor) echo "condense ${method/PRESET/dm} --factor 2 --clip_pixels" ;;
        best_factor) echo "condense ${method/PRESET/best} --factor 2" ;;
        fresh) echo "$strong --networks random" ;;
        strong) echo "$strong" ;;
        trained | online) echo "$strong --networks $1" ;;
        no_factor) echo "$strong --factor 1" ;;
        no_ce) echo "$strong --ce_ratio 0" ;;
        no_rr) echo "$strong --rr_ratio 0" ;;
        style) echo "$strong --mm_ratio 0.3 --cm_ratio 0.3" ;;
        icd) echo "$strong --icd_ratio 0.3" ;;
        *) echo "error: unknown row $1" >&2 && return 2 ;;
    esac
}

run_rows "$@"
