"""Put finished weights on the hub: what is uploaded is listed file by file, and nothing else goes along."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automodel_recipes.errors import RecipeError
from automodel_recipes.places import Place

_PUBLISHED = (".safetensors", ".json", ".txt", ".model", ".jinja", ".md", ".tiktoken")
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_METRICS = ("val/loss", "val/perplexity", "val/token_accuracy", "val/bits_per_byte", "exact_match/exact_match")


@dataclass(frozen=True)
class Publication:
    """What an upload consists of."""

    folder: Path
    files: tuple[str, ...]
    """Uploaded as they are, by their path in the folder."""
    left_out: tuple[str, ...]
    """Files of other kinds, such as pickles and images."""
    texts: dict[str, str]
    """Files that are written for the upload: the model card, an adapter's config with its base model's hub id."""


def plan_publication(place: Place, *, base_model: str | None = None) -> Publication:
    """What `publish` would upload.

    Args:
        place: finished weights: a model or adapter directory, or a run that has them.
        base_model: hub id of the base model, for an adapter that was trained on a local copy.

    Raises: RecipeError: a training checkpoint, a hub id, or an adapter whose base model is a local directory.
    """
    if place.kind not in ("model", "adapter"):
        what = "a hub id already" if place.kind == "hub" else "a training checkpoint, which others cannot load"
        advice = "" if place.kind == "hub" else f" First run: automodel-recipes ckpt export {place.path} -o OUT"
        raise RecipeError(f"{place.path} is {what}. Give a model or adapter directory.{advice}")
    folder = Path(place.path)
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and not _is_hidden(p, folder))
    files = [name for name in names if name.endswith(_PUBLISHED)]
    texts: dict[str, str] = {}
    base = base_model
    if place.kind == "adapter":
        base = _base_on_the_hub(place, base_model)
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        texts["adapter_config.json"] = json.dumps({**config, "base_model_name_or_path": base}, indent=2) + "\n"
    if "README.md" not in files:
        texts["README.md"] = model_card(place, base)
    kept = tuple(name for name in files if name not in texts)
    return Publication(folder, kept, tuple(name for name in names if name not in files), texts)


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _base_on_the_hub(place: Place, base_model: str | None) -> str:
    base = base_model or place.base_model or ""
    if not _REPO_ID.fullmatch(base) or Path(base).exists():
        raise RecipeError(
            f"the adapter names the base model {base!r}, which others do not have. Give its hub id by --base-model."
        )
    return base


def model_card(place: Place, base_model: str | None) -> str:
    """A short README: base model, how it was made, and the last validation metrics of its run."""
    head = ["---", "library_name: " + ("peft" if place.kind == "adapter" else "transformers")]
    head += [f"base_model: {base_model}"] if base_model else []
    lines = [*head, "tags: [automodel]", "---", "", "# Model card", ""]
    lines.append("Fine-tuned with `automodel-recipes`." + (f" Base model: `{base_model}`." if base_model else ""))
    if place.run is not None and (place.run / "run.json").is_file():
        from automodel_recipes.runs.folder import open_run

        run = open_run(place.run)
        measured = [(name, value) for name in _METRICS if (value := run.last(name)) is not None]
        if measured:
            lines += ["", f"After {run.last_step} optimizer steps:", "", "| metric | value |", "|---|---|"]
            lines += [f"| {name} | {value:.4g} |" for name, value in measured]
    return "\n".join(lines) + "\n"


def publish(
    publication: Publication,
    repo_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    message: str = "Upload weights",
    api: Any = None,
) -> str:
    """Create the repository if need be and upload in one commit; returns the commit's address.

    Args:
        repo_id: ``OWNER/NAME``.
        private: for a repository that does not exist yet.
        revision: branch; the main one by default.
        api: a ``huggingface_hub.HfApi``; by default one with the token of ``HF_TOKEN`` or ``hf auth login``.

    Raises: RecipeError: an impossible name, or the hub refuses or cannot be reached; says why.
    """
    if not _REPO_ID.fullmatch(repo_id):
        raise RecipeError(f"{repo_id!r} is no repository name. Write OWNER/NAME, letters, digits and _ . - in both.")
    from huggingface_hub import CommitOperationAdd, HfApi

    operations = [CommitOperationAdd(name, str(publication.folder / name)) for name in publication.files]
    operations += [CommitOperationAdd(name, text.encode()) for name, text in publication.texts.items()]
    hub = api or HfApi()
    try:
        hub.create_repo(repo_id, private=private, exist_ok=True)
        done = hub.create_commit(repo_id, operations=operations, commit_message=message, revision=revision)
    except OSError as error:
        raise RecipeError(
            f"the hub did not take {repo_id}: {error} Check HF_TOKEN, the name, HF_HUB_OFFLINE and the network."
        ) from error
    return str(getattr(done, "commit_url", done))
