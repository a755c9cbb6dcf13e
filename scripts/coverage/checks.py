"""The checks in one process. Each raises, or returns ``ok``, ``none`` or a remark that counts as passed."""

import tempfile

import torch
from families import VOCAB, tiny_config
from notes import EXCLUDE, NEEDS_IMAGE, THROUGH_PEFT

MAX_PARAMETERS = 8_000_000
STEPS = 3


def build(kind, is_vlm):
    """A float32 model of the family, the same weights every time; refused where it is not tiny."""
    from automodel_core import NeMoAutoModelForCausalLM, NeMoAutoModelForImageTextToText

    config = tiny_config(kind)
    auto = NeMoAutoModelForImageTextToText if is_vlm else NeMoAutoModelForCausalLM
    shape = auto.from_config(config, dtype=torch.float32, materialize=False)
    count = sum(parameter.numel() for parameter in shape.parameters())
    if count > MAX_PARAMETERS:
        raise ValueError(f"{count / 1e6:.0f} M parameters: SMALL does not reach a size of this family")
    torch.manual_seed(0)
    return auto.from_config(config, dtype=torch.float32)


def plain_class(is_vlm):
    """The class of plain transformers."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    return AutoModelForImageTextToText if is_vlm else AutoModelForCausalLM


def inputs(kind):
    """Two rows of sixteen tokens; with a picture for families that take nothing without one."""
    generator = torch.Generator().manual_seed(0)
    batch = {"input_ids": torch.randint(3, VOCAB - 16, (2, 16), generator=generator)}
    if kind in NEEDS_IMAGE:
        config = tiny_config(kind)
        side = config.vision_config.image_size
        batch["pixel_values"] = torch.rand(2, 3, side, side, generator=generator)
        mask = torch.zeros(2, 16, dtype=torch.bool)
        mask[:, 1 : 1 + config.latent_query_num] = True
        batch["image_embeds_position_mask"] = mask
    return batch


def train_batch(kind):
    """The batch with shifted labels, the last eight positions supervised, and its label count."""
    from automodel_core.loss import count_label_tokens, shift_labels

    batch = inputs(kind)
    labels = batch["input_ids"].masked_fill(torch.arange(16) < 8, -100)
    shifted = shift_labels({**batch, "labels": labels})
    return shifted, count_label_tokens([shifted])


def train(model, kind):
    """A few steps; raises where the loss is not finite or does not fall."""
    from automodel_core.loss import MaskedCrossEntropy, forward_loss

    batch, count = train_batch(kind)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    model.train()
    for _ in range(STEPS + 1):
        loss = forward_loss(model, batch, MaskedCrossEntropy(), count)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    if not losses[-1] < losses[0]:
        raise ValueError(f"the loss did not fall: {losses[0]:.4f} -> {losses[-1]:.4f}")
    model.eval()


@torch.no_grad()
def same_logits(ours, theirs, kind):
    """Raises where two models differ on the same batch."""
    batch = inputs(kind)
    torch.testing.assert_close(theirs.eval()(**batch).logits, ours.eval()(**batch).logits, rtol=1e-4, atol=1e-4)


def loss_and_norm(model, kind, loss_of):
    """A loss and the norm of all its gradients, in eval mode so that no dropout differs."""
    model.eval()
    loss = loss_of(model)
    loss.backward()
    norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
    return torch.stack([loss.detach(), torch.stack(norms).norm()])


def check_parity(kind, is_vlm):
    """Loss and gradient norm of our loss, and of the fused one, against the family's own ``labels=``."""
    from automodel_core.loss import FusedLinearCrossEntropy, MaskedCrossEntropy, forward_loss

    batch, count = train_batch(kind)
    labels = inputs(kind)["input_ids"].masked_fill(torch.arange(16) < 8, -100)
    theirs = loss_and_norm(build(kind, is_vlm), kind, lambda m: m(**inputs(kind), labels=labels).loss)
    for loss_fn in (MaskedCrossEntropy(), FusedLinearCrossEntropy()):
        ours = loss_and_norm(build(kind, is_vlm), kind, lambda m, fn=loss_fn: forward_loss(m, batch, fn, count))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    return "ok"


def check_lora(kind, is_vlm):
    """LoRA on every linear layer trains; plain transformers with peft read the adapter back to the same logits."""
    from peft import PeftModel

    from automodel_ckpt import save_adapter
    from automodel_core.peft import PeftConfig, adapter_config, adapter_state_dict, apply_lora

    model = build(kind, is_vlm)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(f"{folder}/base")
        if kind in THROUGH_PEFT:
            from peft import LoraConfig

            lora = LoraConfig(r=4, lora_alpha=8, target_modules=THROUGH_PEFT[kind], fan_in_fan_out=True)
        else:
            lora = PeftConfig(dim=4, alpha=8, exclude_modules=EXCLUDE.get(kind, []))
        apply_lora(model, lora)
        train(model, kind)
        save_adapter(f"{folder}/adapter", adapter_state_dict(model), adapter_config(model, lora))
        base = plain_class(is_vlm).from_pretrained(f"{folder}/base", dtype=torch.float32)
        same_logits(model, PeftModel.from_pretrained(base, f"{folder}/adapter"), kind)
    if kind in EXCLUDE:
        return f"without {', '.join(EXCLUDE[kind])}"
    return "by a peft.LoraConfig" if kind in THROUGH_PEFT else "ok"


def check_full(kind, is_vlm):
    """Every parameter trains; plain transformers read the export back to the same logits."""
    from automodel_ckpt import export_hf

    model = build(kind, is_vlm)
    train(model, kind)
    with tempfile.TemporaryDirectory() as folder:
        export_hf(model, f"{folder}/out")
        same_logits(model, plain_class(is_vlm).from_pretrained(f"{folder}/out", dtype=torch.float32), kind)
    return "ok"


def check_kernels(kind, is_vlm):
    """Fused layers give the same logits; ``none``: the family has no layer that a kernel knows."""
    from automodel_kernels import patch_model_with_kernel_optimizations

    plain, patched = build(kind, is_vlm), build(kind, is_vlm)
    try:
        patch_model_with_kernel_optimizations(patched)
    except ValueError as error:
        if "no module" in str(error).lower():
            return "none"
        raise
    same_logits(plain, patched, kind)
    return "ok"


def check_packing(kind, is_vlm):
    """Packed documents do not see one another; ``refused`` where they would, which stops a run before step 1."""
    from automodel_data import refuse_leaking_packs

    model = build(kind, is_vlm)
    try:
        refuse_leaking_packs(model, vocab_size=VOCAB - 16)
    except ValueError:  # a DataError of ours, or the model's own refusal of packed rows
        return "refused"
    return "ok"
