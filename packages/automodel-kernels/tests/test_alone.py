"""A plain Hugging Face model patched in three lines, in a process that can import no sibling wheel and no extra."""

import subprocess
import sys

import pytest

SIBLINGS = ("automodel_core", "automodel_parallel", "automodel_data", "automodel_ckpt", "automodel_recipes")
EXTRAS = ("triton", "torchao", "transformer_engine", "liger_kernel", "peft", "accelerate", "bitsandbytes", "trl")

HEAD = ", ops=('rms_norm', 'rope', 'glu', 'linear_cross_entropy')"

PROGRAM = """
import sys

class Without:
    # A finder that finds everything but some packages, as if they were not installed.
    tried = set()

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in {refused!r}:
            self.tried.add(top)
            return None
        return self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]

import torch
import transformers

sizes = dict(vocab_size=211, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=8, pad_token_id=0)
torch.manual_seed(0)
model = transformers.{family}ForCausalLM(transformers.{family}Config(**sizes))
ids = torch.randint(3, 211, (2, 9))
labels = torch.where(torch.arange(9) < 4, -100, ids)

def step():
    model.zero_grad()
    loss = model(input_ids=ids, labels=labels).loss
    loss.backward()
    return loss.detach(), {{name: p.grad.clone() for name, p in model.named_parameters()}}

loss, grads = step()

from automodel_kernels import patch_model_with_kernel_optimizations, unpatch
report = patch_model_with_kernel_optimizations(model{ops})
print(report)

assert any("forward" in vars(module) for module in model.modules())
patched_loss, patched_grads = step()
torch.testing.assert_close(patched_loss, loss, rtol=1e-6, atol=1e-6)
assert patched_grads.keys() == grads.keys()
for name, grad in grads.items():
    assert float(grad.norm()) > 0, name
    assert float((patched_grads[name] - grad).norm()) <= 1e-5 * float(grad.norm()), name
unpatch(model)
assert not any("forward" in vars(module) for module in model.modules())
unpatched_loss, unpatched_grads = step()
assert torch.equal(unpatched_loss, loss)
assert all(torch.equal(unpatched_grads[name], grad) for name, grad in grads.items())
loaded = sorted(name for name in sys.modules if name.partition(".")[0] in {refused!r})
assert not loaded, loaded
assert not Without.tried & {siblings!r}, Without.tried
print("same loss, same gradients, restored")
"""


def run(program):
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


@pytest.mark.more
@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
@pytest.mark.parametrize("ops", ["", HEAD], ids=["default", "head"])
def test_three_lines_patch_a_plain_model_without_the_sibling_wheels(family, ops):
    done = run(PROGRAM.format(refused={*SIBLINGS, *EXTRAS}, siblings=set(SIBLINGS), family=family, ops=ops))
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"{family}RMSNorm on torch" in done.stdout
    assert done.stdout.strip().endswith("same loss, same gradients, restored")


def test_the_process_really_refuses_the_sibling_wheels():
    program = PROGRAM.split("import torch\n")[0] + "import automodel_core"
    done = run(program.format(refused=set(SIBLINGS)))
    assert "ModuleNotFoundError: No module named 'automodel_core'" in done.stderr
