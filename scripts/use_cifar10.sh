#!/usr/bin/env bash
# The tables of docs/results.md about sets/cifar10_ipc10.safetensors: its accuracy on four networks and after every
# export, and its DD-Ranking scores.
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
set=$here/sets/cifar10_ipc10.safetensors

files=("$set")
for format in png npz tensor; do
    path=$out/exports/set_$format
    case $format in npz) path=$path.npz ;; tensor) path=$path.pt ;; esac
    [[ -e $path ]] || $ddm export "$set" --to $format --out "$path"
    files+=("$path")
done
$ddm evaluate "${files[@]}" --num_eval 3 --epochs 300 --save_path "$out/round_trip"

if $python -c "import ddranking" 2>/dev/null; then
    # 84.8 % is published. Without --full_acc, the package trains on the whole set for --full_epochs.
    $ddm score "$set" --num_epochs 60 --full_acc 84.8 --num_eval 1 --save_path "$out/ddranking"
fi

$ddm evaluate "$set" --model ConvNet,AlexNet,VGG11,ResNet18 --num_eval 3 --epochs 300 --save_path "$out/networks"
