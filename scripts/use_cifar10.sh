#!/usr/bin/env bash
# The tables of docs/results.md about one condensed set of CIFAR10, ipc 10: its accuracy on four networks, its accuracy
# after every export, and its DD-Ranking scores.
#
#   scripts/use_cifar10.sh [OUT]        # results/use by default
#
# The same command resumes after a stop. Without the package ddranking there are no scores (see docs/sets.md).
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
source "$here/scripts/rows.sh"
if show_help "$@"; then exit; fi
if [[ ${1:-} == -* ]]; then echo "error: unknown argument $1: give the folder OUT or --help" >&2 && exit 2; fi
out=${1:-results/use} python=${PYTHON:-python} ddm="${PYTHON:-python} -m ddm"
set=$out/set/res_DM_CIFAR10_ConvNet_10ipc.pt

$ddm condense --preset fast,best --no-clip_pixels --ipc 10 --num_exp 1 --num_eval 3 --epoch_eval_train 300 --eval_every 0 --compile on \
    --save_path "$out/set"

$ddm evaluate "$set" --model ConvNet,AlexNet,VGG11,ResNet18 --num_eval 3 --save_path "$out/networks"

# The same, with pixels in [0, 1] in every step.
$ddm condense --preset fast,best --ipc 10 --num_exp 1 --num_eval 3 --epoch_eval_train 300 --eval_every 0 --compile on \
    --save_path "$out/clipped"

formats=("$set")
for format in png npz tensor safetensors dcbench; do
    path=$out/exports/set_$format
    case $format in npz | safetensors) path=$path.$format ;; tensor) path=$path.pt ;; esac
    [[ -e $path ]] || $ddm export "$set" --to $format --out "$path"
    [[ $format == dcbench ]] && path=$path/DM/CIFAR10/IPC10/res_DM_CIFAR10_ConvNet_10ipc.pt
    formats+=("$path")
done
path=$out/exports/clipped_png
[[ -e $path ]] || $ddm export "$out/clipped/res_DM_CIFAR10_ConvNet_10ipc.pt" --to png --out "$path"
formats+=("$out/clipped/res_DM_CIFAR10_ConvNet_10ipc.pt" "$path")
# All on the evaluation networks of the original run.
$ddm evaluate "${formats[@]}" --num_eval 2 --save_path "$out/round_trip"

if $python -c "import ddranking" 2>/dev/null; then
    # 84.8 % is published. Without --full_acc, the package trains on the whole set for --full_epochs.
    $ddm score "$set" --num_epochs 60 --full_acc 84.8 --num_eval 1 --save_path "$out/ddranking"
fi
