#!/usr/bin/env bash
# Kernel checks and measurements on a CUDA machine, in parts of at most ten minutes:
#   benchmarks/gpu.sh tests      the gpu tests
#   benchmarks/gpu.sh loss       linear cross-entropy and cross-entropy, 8B head, all tokens and 30 %
#   benchmarks/gpu.sh layers     RMSNorm, RoPE, SwiGLU, LoRA linear
#   benchmarks/gpu.sh roofline   this GPU's ceilings
# Rows go to benchmarks/results/<GPU>-<part>.jsonl with driver, versions and git revision in each row.
set -euo pipefail
cd "$(dirname "$0")/.."
part="${1:?tests, loss, layers or roofline}"
gpu="$(nvidia-smi --query-gpu=name --format=csv,noheader | head -1 | tr ' /' '__')"
mkdir -p benchmarks/results
out="benchmarks/results/${gpu}-${part}.jsonl"
bench() { timeout 590 python -m automodel_kernels.bench "$@" --device cuda --json "$out"; }
impls=ours,torch,torch_fused,torch_compile,trl,liger,cce
case "$part" in
  tests) timeout 590 python -m pytest -m gpu packages/automodel-kernels/tests ;;
  loss) bench run --op linear_ce,ce --impl "$impls" --shape llama8b --shape llama8b:valid=0.3 --dtype bf16 --mode full ;;
  layers) bench run --op rms_norm,rope,swiglu,lora --impl "$impls" --shape llama8b --dtype bf16 --mode fwd,full ;;
  roofline) bench roofline ;;
  *) echo "unknown part: $part" >&2; exit 2 ;;
esac
