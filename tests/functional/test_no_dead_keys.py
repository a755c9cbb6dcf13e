"""Every key that the schema declares is read by a run: a setting that nothing reads cannot be declared."""

from importlib.util import find_spec

import pytest

from automodel_core.config import ConfigNode, config_from_dict
from automodel_recipes import LLMFinetuneRecipe, TrainOptions
from automodel_recipes.schema import RECIPES


class Recorded(dict):
    """A dict that notes which of its keys are looked at, also when it is passed on by ``**``."""

    def __init__(self, values, path, seen):
        super().__init__(values)
        self.path, self.seen = path, seen

    def note(self, key):
        self.seen.add(f"{self.path}.{key}" if self.path else key)

    def __getitem__(self, key):
        self.note(key)
        return super().__getitem__(key)

    def __contains__(self, key):
        self.note(key)
        return super().__contains__(key)

    def __iter__(self):  # defined so that `f(**self)` goes through keys() and __getitem__
        return super().__iter__()

    def get(self, key, default=None):
        self.note(key)
        return super().get(key, default)

    def pop(self, key, *default):
        self.note(key)
        return super().pop(key, *default)

    def items(self):
        for key in self:
            self.note(key)
        return super().items()


@pytest.fixture
def seen(monkeypatch):
    """Paths that are read from any configuration node."""
    paths: set[str] = set()

    def joined(node, path):
        return f"{node._path}.{path}" if node._path else path

    def recording(name, original):
        def read(self, path, *arguments, **keywords):
            paths.add(joined(self, path))
            return original(self, path, *arguments, **keywords)

        monkeypatch.setattr(ConfigNode, name, read)

    for name in ("get", "path", "__getitem__", "__contains__"):
        recording(name, getattr(ConfigNode, name))
    plain = ConfigNode.to_dict

    def to_dict(self, *, raw=False):
        values = plain(self, raw=raw)
        return values if raw else Recorded(values, self._path, paths)

    monkeypatch.setattr(ConfigNode, "to_dict", to_dict)
    return paths


@pytest.fixture
def full_config(tiny_config, tmp_path):
    """A run with every section that hands its keys on as a whole."""
    model = tiny_config["model"]["pretrained_model_name_or_path"]
    tiny_config["step_scheduler"] |= {"max_steps": 1, "log_every_steps": 1}
    tiny_config["tokenizer"] = {
        "pretrained_model_name_or_path": model,
        "revision": "main",
        "subfolder": "",
        "cache_dir": str(tmp_path),
        "token": "x",
        "trust_remote_code": False,
        "use_fast": True,
        "add_bos_token": False,
        "add_eos_token": False,
    }
    tiny_config["validation_dataset"] = dict(tiny_config["dataset"])
    tiny_config["dataloader"] = {"num_workers": 0, "shuffle": False}
    tiny_config["validation_dataloader"] = {"num_workers": 0, "batch_size": 4}
    tiny_config["mixed_precision"] = {"dtype": "bfloat16"}
    tiny_config["distributed"] = {"strategy": "ddp"}
    tiny_config["evaluation"] = {"exact_match": True, "max_new_tokens": 2, "num_rows": 2, "num_samples": 1}
    tiny_config["checkpoint"] = {"enabled": True, "checkpoint_dir": str(tmp_path / "out"), "max_recent_checkpoints": 1}
    tiny_config["profiler"] = {"enabled": True, "ranks": [0], "start_step": 9}
    tiny_config |= {name: keys for name, keys in trackers(tmp_path).items() if find_spec(name)}
    return tiny_config


def trackers(folder):
    """Every key of the sections that need a package of their own."""
    texts = ("project", "entity", "name", "group", "job_type", "notes", "id", "save_dir", "api_key")
    wandb = {**{key: str(folder / key) if key == "save_dir" else "x" for key in texts}, "tags": ["x"]}
    return {
        "wandb": {**wandb, "mode": "disabled", "enabled": True},
        "tensorboard": {"log_dir": str(folder / "tb"), "flush_secs": 1},
        "mlflow": {"tracking_uri": f"file:{folder}/ml", "experiment_name": "x", "run_name": "x", "tags": {"x": "y"}},
    }


def declared_keys():
    for name, section in RECIPES["LLMFinetuneRecipe"].items():
        if section.value is not None:
            yield name
        else:
            yield name
            yield from (f"{name}.{key}" for key in section.keys)


# Read by whoever starts the recipe, before there is one; `launch slurm` has its own tests.
BEFORE_THE_RECIPE = {"recipe", "slurm"}
NOT_INSTALLED = {name for name in ("wandb", "tensorboard", "mlflow") if not find_spec(name)}


def test_every_declared_key_is_read(full_config, seen):
    recipe = LLMFinetuneRecipe(config_from_dict(full_config), TrainOptions(quiet=True))
    try:
        recipe.setup()
        recipe.train()
    finally:
        recipe.close()
    sections = {path.partition(".")[0] for path in seen}
    unread = set(declared_keys()) - seen - sections
    assert sorted(path for path in unread if path.partition(".")[0] not in BEFORE_THE_RECIPE) == []


def test_the_recorder_does_not_note_what_is_not_read(seen):
    config = config_from_dict({"a": {"b": 1, "c": 2}})
    assert config.get("a.b") == 1
    values = config.a.to_dict()
    assert seen == {"a.b", "a"}
    assert (lambda **keys: keys)(**values) == {"b": 1, "c": 2}
    assert seen == {"a.b", "a", "a.c"}
