"""docs/coverage.md from the rows."""

from notes import EXPLAINED

CHECKS = {
    "parity": "parity",
    "lora": "LoRA",
    "full": "full",
    "kernels": "kernels",
    "packing": "packing",
    "fsdp2": "FSDP2",
    "tp": "TP",
}
_FAILED = "failed: "
_MARKS = {"ok": "yes", "none": "none fit"}
HEAD = """# Model coverage

With transformers {transformers} and torch {torch}: {causal} causal language families and {image_text} image-text families pass every check.
Written by `python scripts/coverage`, from random weights at a tiny size, in float32 on the CPU.

| check | what passes |
|---|---|
| parity | loss and gradient norm under our plain and fused losses are those of the family's own `labels=` |
| LoRA | LoRA on every linear layer trains, and plain transformers with `peft` read the adapter back to the same logits |
| full | every parameter trains, and plain transformers read the export back to the same logits |
| kernels | fused layers give the same logits; "none fit": the family has no layer that a kernel knows |
| packing | packed documents do not see one another; "refused": they would, and a run says so before its first step |
| FSDP2 | two sharded ranks give the loss and gradient norm of one process |
| TP | the same with every layer cut over two ranks; "refused": no plan, or sizes that do not divide, said before anything loads |

Image-text families get text alone here, but for those that take no batch without a picture; pictures are tested family by family in `automodel-data`.

"""  # noqa: E501 - rows of a Markdown table


def failures(row):
    """Names of the checks that failed."""
    return [name for name in CHECKS if row[name].startswith(_FAILED)]


def failed(error):
    """The text of a failed check."""
    first = str(error).strip().splitlines() or [""]
    return f"{_FAILED}{type(error).__name__}: {first[0][:160]}"


def markdown(rows):
    """The page."""
    import torch
    import transformers

    def share(task):
        those = [row for row in rows if row["task"] == task]
        return f"{sum(not failures(row) for row in those)} of {len(those)}"

    lines = [
        HEAD.format(
            transformers=transformers.__version__,
            torch=torch.__version__.split("+")[0],
            causal=share("causal"),
            image_text=share("image-text"),
        )
    ]
    lines.append(f"| family | task | {' | '.join(CHECKS.values())} |\n|---|---|{'---|' * len(CHECKS)}\n")
    for row in rows:
        cells = " | ".join("no" if name in failures(row) else _MARKS.get(row[name], row[name]) for name in CHECKS)
        lines.append(f"| {row['family']} | {row['task']} | {cells.replace('*', chr(92) + '*')} |\n")
    bad = [(row, name) for row in rows for name in failures(row)]
    if bad:
        lines.append("\n## What failed\n\n")
    for row, name in bad:
        why = EXPLAINED.get((row["family"], name), "")
        text = row[name].removeprefix(_FAILED).replace("`", "")
        lines.append(f"- {row['family']}, {CHECKS[name]}: `{text}`{': ' + why if why else ''}\n")
    return "".join(lines)
