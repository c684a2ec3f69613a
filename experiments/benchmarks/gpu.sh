#!/bin/sh
# On a GPU, in about eight minutes: the tests that need one, and latent steps, answers, rounds and
# training steps of the released Light system with random weights, against torch and the floors.
#
#     experiments/benchmarks/gpu.sh OUT [options of experiments.benchmarks.rounds]
#
# Needs jax[cuda13], torch with CUDA, and pytest.
set -eu
out=${1:?"usage: experiments/benchmarks/gpu.sh OUT [options]"}
shift
mkdir -p "$out"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$out/card.txt"
# Torch takes its memory beside JAX's.
export XLA_PYTHON_CLIENT_MEM_FRACTION=0.6 TOKENIZERS_PARALLELISM=false
tests=0
python3 -m pytest -p no:benchmark -n 0 -m accelerator tests/test_accelerator.py >"$out/tests.txt" 2>&1 || tests=$?
tail -n 30 "$out/tests.txt"
python3 -m experiments.benchmarks.rounds --shape light --batch 1 8 32 --out "$out" "$@"
exit "$tests"
