# Sourced by the scripts of the tables. A script sets `here` (the root of the repository), `rows` (the default of --rows)
# and `default_out`. It defines `flags_of ROW` (the command of a row: one of ddm, or a recipe at the root such as
# DM_DDM.py, and at least one flag; may use $budget, $method, $proxy) and calls `run_rows "$@"`. It runs from any folder:
# commands find the package through PYTHONPATH. A script may also set `options` (the names of variables that are flags,
# too), `collect_flags` and `fixed_evaluation` (flags in place of the budget's), and define `default_rows` (prints the
# default of --rows).
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"

show_help() { # print the comment at the top of the script, and succeed, if the arguments ask for help
    if [[ ${1:-} != --help && ${1:-} != -h ]]; then return 1; fi
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
}

run_rows() {
    local ipc=10 budget=cpu out=$default_out evaluation
    while (($#)); do
        if show_help "$@"; then return; fi
        if [[ $1 != -- && -z ${2:-} ]]; then echo "error: $1 needs a value" >&2 && return 2; fi
        case $1 in
            --ipc) ipc=$2 ;;
            --budget)
                if [[ ${fixed_evaluation:-} ]]; then echo "error: --budget: this script has one budget" >&2 && return 2; fi
                budget=$2
                ;;
            --out) out=$2 ;;
            --rows) rows=$2 ;;
            --) shift && break ;;
            *)
                if [[ $1 != --* || " ${options:-} " != *" ${1#--} "* ]]; then
                    local known="--ipc --budget --out --rows ${options:+--${options// / --}} --"
                    echo "error: unknown argument $1: choose from $known" >&2 && return 2
                fi
                printf -v "${1#--}" %s "$2"
                ;;
        esac
        shift 2
    done
    case $budget in
        cpu) # bf16 if the CPU is fast at it
            method="--preset fast,PRESET --Iteration 300 --eval_every 0" proxy="--proxy_epochs 5"
            evaluation="--num_exp ${experiments:-3} --num_eval ${networks:-3} --epoch_eval_train 300 --compile on"
            ;;
        full)
            method="--preset PRESET --eval_every 0" proxy=""
            evaluation="--num_exp 5 --num_eval 5 --precision bf16" # equal for short and long rows
            ;;
        *) echo "error: --budget $budget: choose cpu or full" >&2 && return 2 ;;
    esac
    evaluation=${fixed_evaluation:-$evaluation}
    local row command status program failed="" child="" stopped=0
    # Bash would wait for the command first. It resumes from the checkpoint that it writes now.
    trap 'stopped=143; [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true' TERM INT HUP
    if [[ -z $rows ]]; then rows=$(default_rows); fi
    for row in $rows; do flags_of "$row" >/dev/null || return 2; done # check all rows first
    for row in $rows; do
        command=$(flags_of "$row")
        echo "== $row: $command${*:+ $*}"
        status=0 program=(-m ddm "${command%% *}")
        if [[ ${command%% *} == *.py ]]; then
            program=("${command%% *}")
            if [[ ! -f ${program[0]} ]]; then program=("$here/${program[0]}"); fi
        fi
        # Split into words on purpose, one per flag. A row's own flags come last: they override the budget's.
        # shellcheck disable=SC2086
        "${PYTHON:-python}" "${program[@]}" $evaluation --ipc "$ipc" ${command#* } --save_path "$out/ipc$ipc/$row" "$@" &
        child=$!
        wait "$child" || status=$?
        while kill -0 "$child" 2>/dev/null; do # a signal has ended `wait`, and the command is writing its checkpoint
            status=0
            wait "$child" || status=$?
        done
        ((stopped == 0)) || return "$stopped"
        ((status < 128)) || return "$status" # stopped by a signal
        ((status == 0)) || failed+=" $row"
    done
    # The names of the rows say what differs. Flags are split into words on purpose.
    # shellcheck disable=SC2086
    "${PYTHON:-python}" -m ddm collect "$out/ipc$ipc" ${collect_flags:---columns none} || return
    if [[ $failed ]]; then echo "error: these rows failed, see above:$failed" >&2 && return 2; fi
}
