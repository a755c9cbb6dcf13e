#!/usr/bin/env bash
# What each saving brings, one JSON row each, on whatever device is there:
#   benchmarks/ladder.sh CONFIG OUT.jsonl [a.b=c ...]      e.g. examples/llm/demo_full.yaml ladder.jsonl
# baseline -> packed -> compile -> fused loss -> checkpointing -> 8-bit states -> LoRA -> QLoRA. Each rung keeps the ones
# before it, but for checkpointing (rung of its own) and QLoRA; 8-bit states and QLoRA need bitsandbytes. A rung that
# cannot run leaves a row with the reason. WARMUP and STEPS (3 and 10), PACK (1024: tokens of a pack) and BENCH (more
# words, such as "--synthetic") come from the environment. CONFIG trains every parameter and packs nothing.
set -uo pipefail
config="${1:?a configuration}"; out="${2:?a file for the rows}"; shift 2
common=(--warmup "${WARMUP:-3}" --steps "${STEPS:-10}" --output "$out" ${BENCH:-} "$@" monitoring.track_memory="${TRACK:-true}")
rung() {
  local name="$1"; shift
  echo "== $name"
  automodel-recipes bench "$config" --name "$name" "${common[@]}" "$@" && return
  # A configuration that is refused before anything is measured leaves no row of its own.
  tail -n 1 "$out" 2>/dev/null | grep -q "\"name\": \"$name\"" ||
    printf '{"name": "%s", "status": "failed", "reason": "refused; see the output"}\n' "$name" >> "$out"
  echo "   rung $name failed"
}
packed=(packed_sequence.packed_sequence_size="${PACK:-1024}" step_scheduler.local_batch_size=1)
compiled=("${packed[@]}" compile.enabled=true)
fused=("${compiled[@]}" loss_fn._target_=fused_linear_ce)
checkpointed=("${fused[@]}" distributed.strategy=fsdp2 distributed.activation_checkpointing=true)
small=("${fused[@]}" optimizer._target_=bitsandbytes.optim.AdamW8bit)
lora=("${fused[@]}" peft._target_=lora peft.dim=16 peft.alpha=32)
rung baseline
rung packed "${packed[@]}"
rung compile "${compiled[@]}"
rung fused-loss "${fused[@]}"
rung checkpointing "${checkpointed[@]}"
rung 8-bit-states "${small[@]}"
rung lora "${lora[@]}"
rung qlora "${lora[@]}" quantization.load_in_4bit=true
