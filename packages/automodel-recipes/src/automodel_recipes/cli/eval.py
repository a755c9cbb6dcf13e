"""``eval PATH_OR_CONFIG``."""

import json
from pathlib import Path
from typing import Any

import click

from automodel_recipes.cli.arguments import OVERRIDES_AS_ARGUMENTS, output_options, read_config


@click.command("eval", context_settings=OVERRIDES_AS_ARGUMENTS, options_metavar="[OPTIONS]")
@click.argument("path")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED, metavar="[a.b=c ...]")
@click.option("--config", metavar="YAML", help="Data to measure PATH on; its run's own by default.")
@click.option("--base-model", metavar="PATH", help="The adapter's base model, where it has moved.")
@click.option("--exact-match/--no-exact-match", default=None, help="Compare generated answers; as the config says.")
@click.option("--num-rows", type=click.IntRange(1), metavar="N", help="Answers to generate; all by default.")
@click.option("--per-row", is_flag=True, help="Rank the rows by their own loss.")
@click.option("--top", default=20, show_default=True, type=click.IntRange(1), help="Rows to print with --per-row.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Write all rows, or the answers, as JSONL.")
@click.option("--lm-eval", "tasks", metavar="TASK,...", help="Tasks of lm-evaluation-harness, in place of the data.")
@click.option("--lm-eval-path", type=click.Path(exists=True, path_type=Path), help="Directory of your own tasks.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Documents of each lm-eval task.")
@click.option("--allow-target", multiple=True, metavar="PREFIX", help="Let _target_ name PREFIX as well.")
@output_options
def evaluate(
    path: str,
    overrides: tuple[str, ...],
    *,
    config: str | None,
    base_model: str | None,
    exact_match: bool | None,
    num_rows: int | None,
    per_row: bool,
    top: int,
    out: Path | None,
    tasks: str | None,
    lm_eval_path: Path | None,
    limit: int | None,
    allow_target: tuple[str, ...],
    as_json: bool,
) -> int:
    """Loss, perplexity, accuracy and exact match of a run, checkpoint, adapter, model or configuration.

    Example: automodel-recipes eval runs/demo_lora@best --exact-match
    """
    if tasks is not None:
        return _lm_eval(path, tasks, base_model=base_model, include=lm_eval_path, limit=limit, as_json=as_json)
    recipe = _subject(path, overrides, config=config, base_model=base_model, allow_target=allow_target)
    try:
        if per_row:
            return _print_rows(recipe, top=top, out=out, as_json=as_json)
        from automodel_recipes.evaluation.scores import scores

        wanted = recipe.config.get("evaluation.exact_match", False) if exact_match is None else exact_match
        found = scores(recipe, exact_match=wanted, num_rows=num_rows, samples=out)
    finally:
        recipe.close()
    if as_json:
        click.echo(json.dumps({"path": path, "sets": found}))
    else:
        for name, metrics in found.items():
            click.echo(f"{name:<9}" + ", ".join(f"{key} {_shown(value)}" for key, value in metrics.items()))
    return 0


def _subject(
    path: str,
    overrides: tuple[str, ...],
    *,
    config: str | None,
    base_model: str | None,
    allow_target: tuple[str, ...],
) -> Any:
    from automodel_recipes.validation import check

    if Path(path).suffix in (".yaml", ".yml"):
        node = read_config(path, overrides, allow_target=allow_target)
        check(node, deep=True)
        from automodel_recipes.evaluation.subject import from_config

        return from_config(node)
    from automodel_recipes.evaluation.subject import config_of, from_place
    from automodel_recipes.places import find_place

    place = find_place(path)
    if config is None and overrides:
        raise click.UsageError("overrides change a configuration: name one by --config.")
    node = config_of(place) if config is None else read_config(config, overrides, allow_target=allow_target)
    return from_place(place, node, base_model=base_model)


def _print_rows(recipe: Any, *, top: int, out: Path | None, as_json: bool) -> int:
    from automodel_recipes.evaluation.per_row import rank_rows
    from automodel_recipes.loggers.console import one_line, printable

    ranked = rank_rows(recipe)
    if out is not None:
        out.write_text("".join(json.dumps(score.to_dict()) + "\n" for score in ranked), encoding="utf-8")
    if as_json:
        click.echo(json.dumps({"rows": [score.to_dict() for score in ranked[:top]], "num_rows": len(ranked)}))
        return 0
    for score in ranked[:top]:
        note = f" [{score.note}]" if score.note else ""
        click.echo(
            printable(f"{score.set} row {score.row}: loss {score.loss:.3f}, {score.num_label_tokens} tokens{note}")
        )
        click.echo(printable(f"    {one_line(score.prompt, 100)} -> {one_line(score.answer, 100)}"))
    return 0


def _lm_eval(
    path: str, tasks: str, *, base_model: str | None, include: Path | None, limit: int | None, as_json: bool
) -> int:
    from automodel_parallel.init import resolve_device
    from automodel_recipes.evaluation.lm_eval import run_tasks
    from automodel_recipes.inference import load_for_inference
    from automodel_recipes.places import find_place

    if Path(path).suffix in (".yaml", ".yml"):
        raise click.UsageError("--lm-eval takes a run, checkpoint, adapter, model or hub id, not a configuration.")
    model, tokenizer = load_for_inference(find_place(path), base_model=base_model, device=str(resolve_device("auto")))
    found = run_tasks(model, tokenizer, tasks.split(","), include_path=include, limit=limit)
    if as_json:
        click.echo(json.dumps({"path": path, "tasks": found}, default=str))
        return 0
    for task, metrics in found.items():
        for key, value in metrics.items():
            if isinstance(value, float):
                click.echo(f"{task:<24}{key:<28}{value:.4f}")
    return 0


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
