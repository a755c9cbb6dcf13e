#!/usr/bin/env bash
# Automodel, TRL and the Hugging Face Trainer on the same rows, in one run: tokens/s, peak RSS, loss.
# Needs `hatch`; arguments go to benchmarks/peers.py.
set -euo pipefail
cd "$(dirname "$0")/.."
exec hatch run peers:compare "$@"
