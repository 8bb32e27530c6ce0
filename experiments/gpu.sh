#!/usr/bin/env bash
# What is to be measured on a GPU, in the order in which it pays: repairs first, then speed, then results at scale. Each step goes on
# where it was stopped and leaves its output in the folder given (default: results/gpu).
#
#   experiments/gpu.sh [OUT] [DATA]       all of it; with FIRST=1 the tests and the benches alone (about ten minutes)
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-results/gpu} data=${2:-${SPLINTERP_DATA:-}}
python=${PYTHON:-.venv/bin/python}
mkdir -p "$out"
args=(--out "$out" --device cuda)
[ -n "$data" ] && on=(--data-dir "$data") || on=()

nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv | tee "$out/card.txt"
"$python" -m pytest -q -m gpu 2>&1 | tee "$out/tests.txt" || true # what fails is what is to be repaired
for bench in train extract; do
    "$python" -m experiments bench "$bench" "${args[@]}" 2>&1 | tee "$out/bench-$bench.txt"
done
[ "${FIRST:-}" = 1 ] && exit

"$python" -m experiments mnist --preset centred "${args[@]}" "${on[@]}"
"$python" -m experiments learning "${args[@]}" "${on[@]}"
for layer in 1 2 3 4 5 6; do
    "$python" -m experiments llm --preset centred --parts sizes --layer "$layer" "${args[@]}" "${on[@]}"
done
for layer in 1 3; do
    "$python" -m experiments llm --preset centred --parts sizes --model small-gpt2 --layer "$layer" --pool 72000 "${args[@]}" "${on[@]}"
done
for set in tree mnist minilm; do
    "$python" -m experiments variants --data "$set" "${args[@]}" "${on[@]}"
done
