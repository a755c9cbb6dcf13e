"""One op of each kind in Triton's interpreter, in a process of its own: the rest runs in the interpreter's lane."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, torch
from automodel_kernels import ops, reference
from automodel_kernels.backend import announced
torch.manual_seed(0)
x, w = torch.randn(3, 17), torch.randn(17)
labels = torch.tensor([0, -100, 22])
a, b, base, head = torch.randn(4, 17), torch.randn(9, 4), torch.randn(9, 17), torch.randn(23, 17)
pairs = [
    (ops.rms_norm(x, w), reference.rms_norm(x, w)),
    (ops.swiglu(x, x + 1), reference.swiglu(x, x + 1)),
    (ops.lora_linear(x, base, a, b, scaling=2.0), reference.lora_linear(x, base, a, b, scaling=2.0)),
    (ops.linear_cross_entropy(x, head, labels), reference.linear_cross_entropy(x, head, labels)),
]
print(json.dumps({"errors": [float((p - q).abs().max()) for p, q in pairs], "ran": announced()}))
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the whole interpreter lane runs")
def test_kernels_run_in_the_interpreter_and_say_so():
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert max(result["errors"]) < 1e-5
    assert {op: list(backends) for op, backends in result["ran"].items()} == {
        op: ["triton"] for op in ("rms_norm", "swiglu", "lora_linear", "linear_cross_entropy")
    }
