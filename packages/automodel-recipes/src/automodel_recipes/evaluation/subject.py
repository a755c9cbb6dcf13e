"""What ``eval`` measures: a recipe with a model and validation sets, without a run directory and an optimizer."""

from pathlib import Path
from typing import Any

from automodel_core.config import ConfigNode, config_from_dict
from automodel_recipes.build.model import ModelBuild
from automodel_recipes.build.optim import build_loss
from automodel_recipes.errors import UnusableInputError
from automodel_recipes.options import TrainOptions
from automodel_recipes.places import Place
from automodel_recipes.run import configured_recipe
from automodel_recipes.schema import DEFAULT_RECIPE

# Measured as what the student is, without its teacher.
_STUDENTS = {
    "KnowledgeDistillationRecipe": "LLMFinetuneRecipe",
    "VLMKnowledgeDistillationRecipe": "VLMFinetuneRecipe",
}


def from_config(config: ConfigNode) -> Any:
    """The model and validation sets of a configuration, the model as it is before the first step.

    Raises: UnusableInputError: no validation set.
    """
    recipe = _recipe(config)
    recipe.build_tokenizer()
    recipe.build_model()
    return _with_validation(recipe)


def from_place(place: Place, config: ConfigNode, *, base_model: str | None = None) -> Any:
    """Weights of a place under the data, tokenizer settings and loss of a configuration.

    Args:
        place: a checkpoint is loaded into the configuration's own model; an adapter, model or hub id is loaded through
            PEFT and transformers, as a stranger would.
        config: of the run, or another with the same kind of recipe.
        base_model: where an adapter's base model has moved to.

    Raises: UnusableInputError: no validation set.
    """
    recipe = _recipe(_of_one_student(config))
    if place.kind == "checkpoint":
        from automodel_ckpt import load

        recipe.build_tokenizer()
        recipe.build_model()
        load(place.path, {"model": recipe.unwrapped()})
    else:
        _load_finished(recipe, place, base_model)
    return _with_validation(recipe)


def _recipe(config: ConfigNode) -> Any:
    _require_validation(config)
    recipe: Any = configured_recipe(config)(config, TrainOptions(quiet=True))
    recipe.build_environment()
    return recipe


def _require_validation(config: ConfigNode) -> None:
    if not any(key.startswith("validation_dataset") for key in config):
        raise UnusableInputError(
            "the configuration has no validation_dataset, so there is nothing to measure on. Add one, or name a "
            "configuration that has one by --config."
        )


def _of_one_student(config: ConfigNode) -> ConfigNode:
    """The configuration for one process, and without a teacher."""
    values = {key: value for key, value in config.to_dict(raw=True).items() if key != "distributed"}
    name = values.get("recipe", DEFAULT_RECIPE)
    if name in _STUDENTS:
        values = {key: value for key, value in values.items() if key not in ("teacher_model", "loss_fn")}
        values["recipe"] = _STUDENTS[name]
    return config_from_dict(values, allow_targets=config.policy.allow_targets)


def _load_finished(recipe: Any, place: Place, base_model: str | None) -> None:
    """Set tokenizer, processor and model from a finished directory or the hub."""
    from automodel_recipes.inference import load_for_inference
    from automodel_recipes.llm.seq_cls import SequenceClassificationRecipe
    from automodel_recipes.vlm.finetune import VLMFinetuneRecipe
    from automodel_recipes.vlm.inference import load_vlm

    device = str(recipe.device)
    if isinstance(recipe, VLMFinetuneRecipe):
        model, recipe.processor = load_vlm(place, base_model=base_model, device=device)
        recipe.tokenizer = recipe.processor.tokenizer
    elif isinstance(recipe, SequenceClassificationRecipe):
        recipe.build_tokenizer()
        model = _load_classifier(place).to(recipe.device).eval()
    else:
        model, recipe.tokenizer = load_for_inference(place, base_model=base_model, device=device)
    recipe.built, recipe.model = ModelBuild(model), model
    recipe.loss_fn = build_loss(recipe.config)


def _load_classifier(place: Place) -> Any:
    from transformers import AutoModelForSequenceClassification

    if place.kind == "adapter":
        raise UnusableInputError(
            f"{place.path} is the adapter of a classifier, which holds no classification head. Give a checkpoint of "
            "its run, such as RUN@latest."
        )
    return AutoModelForSequenceClassification.from_pretrained(place.path, dtype="auto")


def _with_validation(recipe: Any) -> Any:
    recipe.build_validation()
    return recipe


def config_of(place: Place) -> ConfigNode:
    """The configuration of the run that a place belongs to.

    Raises: UnusableInputError: it belongs to none.
    """
    from automodel_recipes.runs.folder import open_run

    for folder in (place.run, *Path(place.path).parents[:2]):
        if folder is not None and (folder / "run.json").is_file():
            return config_from_dict(open_run(folder).record["config"])
    raise UnusableInputError(
        f"{place.path} belongs to no run, so it is not known what to measure it on. Name a configuration with a "
        "validation_dataset by --config."
    )
