"""The checks on two processes, forked from this one so that transformers is imported once: FSDP2 and TP."""

import multiprocessing
import os
import socket

import torch
from checks import build, loss_and_norm, train_batch

DEADLINE_S = 90


def check_fsdp2(kind, is_vlm):
    """Loss and gradient norm on two sharded ranks are those of one process."""
    return on_two_ranks(kind, is_vlm, {})


def check_tp(kind, is_vlm):
    """The same with each layer cut over two ranks; ``refused`` where there is no plan, or it does not fit."""
    return on_two_ranks(kind, is_vlm, {"tp_size": 2})


def on_two_ranks(kind, is_vlm, settings):
    """Run a strategy on two ranks; raises with the first rank's error, or when they do not end."""
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    port = free_port()
    ranks = [
        context.Process(target=rank_main, args=(rank, port, answers, kind, is_vlm, settings), daemon=True)
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(DEADLINE_S)
    alive = [process for process in ranks if process.is_alive()]
    for process in alive:
        process.kill()
    if answers.empty():
        raise RuntimeError("the ranks did not end" if alive else "a rank ended without an answer")
    kept, text = answers.get()
    if kept:
        return text
    raise RuntimeError(text)


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def rank_main(rank, port, answers, kind, is_vlm, settings):
    """One rank: puts ``(passed, text)`` into ``answers``."""
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2"
    )
    try:
        text = compare(kind, is_vlm, settings)
        if rank == 0:
            answers.put((True, text))
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is the table's content
        first = str(error).strip().splitlines() or [""]
        answers.put((False, f"{type(error).__name__}: {first[0][:160]}"))
        os._exit(1)
    os._exit(0)


def compare(kind, is_vlm, settings):
    """Parallel against plain on this rank; returns ``ok`` or ``refused``."""
    from automodel_core.loss import MaskedCrossEntropy, forward_loss
    from automodel_parallel import FSDP2Manager, init_distributed

    batch, count = train_batch(kind)
    plain = loss_and_norm(build(kind, is_vlm), kind, lambda m: forward_loss(m, batch, MaskedCrossEntropy(), count))
    context = FSDP2Manager(**settings).setup(init_distributed(device="cpu", timeout_minutes=1))
    try:
        model, _ = context.parallelize(build(kind, is_vlm))
    except ValueError as error:
        if "tp_size" in settings and ("plan" in str(error) or "divide" in str(error)):
            return "refused"
        raise
    rows = slice(context.dp_rank, context.dp_rank + 1) if context.dp_size == 2 else slice(None)
    part = {key: value[rows] for key, value in batch.items() if key != "label_index"}
    model.eval()
    with context.gradient_sync(model, enabled=True):
        loss = forward_loss(model, part, MaskedCrossEntropy(), count)
        loss.backward()
    norm = context.clip_grad_norm(model, None)
    ours = torch.stack([context.sum_over_loss_ranks(loss.detach()), norm.detach()])
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)
    return "ok"
