"""``run.json``: what a run is, decided before its first step, and how it ended."""

import platform
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from automodel_core.config.secret import MASK, is_secret_key
from automodel_recipes.flops import FORMULA
from automodel_recipes.runs.folder import FORMAT
from automodel_recipes.validation.provenance import provenance
from automodel_recipes.versions import installed_versions

if TYPE_CHECKING:
    from automodel_recipes.base import BaseRecipe
    from automodel_recipes.loop import TrainSummary


def run_record(
    r: "BaseRecipe", *, status: str, summary: "TrainSummary | None", end: dict[str, Any] | None
) -> dict[str, Any]:
    """The whole record, with secrets as the YAML names them or masked.

    Args:
        r: a recipe after ``setup``.
        status: ``running``, ``finished``, ``interrupted`` or ``failed``.
        summary: what a finished run came to.
        end: ``exit_code`` and ``reason`` of a run that is over.
    """
    record: dict[str, Any] = {
        "format": FORMAT,
        "status": status,
        "recipe": type(r).__name__,
        "command": without_secrets(sys.argv),
        "config": r.config.to_dict(raw=True),
        "provenance": {
            row.path: {"value": row.value, "origin": row.origin, "source": row.source} for row in provenance(r.config)
        },
        "versions": installed_versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(r.device),
        "device_name": _device_name(r),
        "world_size": r.parallel.world_size,
        "data": vars(r.data_facts),
        "model": {
            "num_parameters": r.built.num_parameters,
            "num_trainable": r.built.num_trainable,
            "edits": [str(report) for report in r.built.reports],
        },
        "mfu": _mfu(r),
        "memory": r.memory.record(),
        "num_label_tokens": r.records.meter.total_label_tokens,
        "end": end,
    }
    if summary is not None:
        record["summary"] = {
            "steps": summary.steps,
            "seconds": round(summary.seconds, 2),
            "last_loss": summary.last_loss,
            "validation": {name: m.loss for name, m in summary.validation.items()},
            "exact_match": summary.exact_match,
            "phase_seconds": summary.phases,
        }
    return record


def without_secrets(words: Sequence[str]) -> list[str]:
    """A command line whose ``a.token=VALUE`` and ``--a.token VALUE`` are masked."""
    shown, hide = [], False
    for word in words:
        key, equals, _ = word.lstrip("-").partition("=")
        secret = is_secret_key(key.rpartition(".")[2])
        shown.append(MASK if hide else f"{word.partition('=')[0]}={MASK}" if secret and equals else word)
        hide = secret and not equals and word.startswith("--")
    return shown


def _mfu(r: "BaseRecipe") -> dict[str, Any]:
    peak, flops = r.records.meter.peak, r.records.meter.flops
    if peak is None:
        return {"formula": FORMULA, "peak_tflops": None, "peak_source": "not known; set monitoring.peak_tflops"}
    return {
        "formula": FORMULA,
        "flops_per_token": flops.per_token,
        "flops_per_squared_length": flops.per_squared_length,
        "peak_tflops": round(peak.tflops, 4),
        "peak_source": peak.source,
    }


def _device_name(r: "BaseRecipe") -> str:
    import torch

    return torch.cuda.get_device_name(r.device) if r.device.type == "cuda" else platform.processor() or r.device.type
