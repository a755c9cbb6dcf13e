"""Every key that the schema declares is read by a run of each recipe: a setting that nothing reads is none."""

import ast
import json

import pytest
import torch

from automodel_core.config import ConfigNode, config_from_dict
from automodel_core.config.targets import components
from automodel_recipes import TrainOptions
from automodel_recipes.schema import RECIPES
from automodel_recipes.validation.source import find_definition, read_module


class Recorded(dict):
    """A dict that notes which of its keys are looked at, also when it is passed on by ``**`` or merged by ``|``."""

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

    def __or__(self, other):
        values = dict(zip(dict.keys(self), dict.values(self), strict=True))
        values.update(other)
        return Recorded(values, self.path, self.seen)

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


def declared_keys(recipe):
    for name, section in RECIPES[recipe].items():
        yield name
        yield from (f"{name}.{key}" for key in section.keys)


@pytest.fixture
def common(tiny_config, tmp_path):
    """One step with every section whose keys a recipe hands on as a whole, in its cheapest form."""
    tiny_config["step_scheduler"] |= {"max_steps": 1, "log_every_steps": 1}
    tiny_config["dataset"]["limit_dataset_samples"] = 8
    tiny_config["dataloader"] = {"num_workers": 0, "shuffle": False}
    tiny_config["validation_dataloader"] = {"num_workers": 0, "batch_size": 4}
    tiny_config["mixed_precision"] = {"dtype": "bfloat16"}
    tiny_config["distributed"] = {"strategy": "ddp"}
    tiny_config["profiler"] = {"enabled": True, "ranks": [1]}
    tiny_config["early_stopping"] = {"patience": 9}
    tiny_config["checkpoint"] = {"enabled": True, "checkpoint_dir": str(tmp_path / "out"), "max_recent_checkpoints": 1}
    return tiny_config


def with_tokenizer(config, folder):
    config["tokenizer"] = {
        "pretrained_model_name_or_path": config["model"]["pretrained_model_name_or_path"],
        "revision": "main",
        "subfolder": "",
        "cache_dir": str(folder),
        "token": "x",
        "trust_remote_code": False,
        "use_fast": True,
        "add_bos_token": False,
        "add_eos_token": False,
    }
    config["validation_dataset"] = dict(config["dataset"])
    return config


def as_llm(config, folder):
    config["evaluation"] = {"exact_match": True, "max_new_tokens": 2, "num_rows": 2, "num_samples": 1}
    return with_tokenizer(config, folder)


def as_kd(config, folder):
    return as_llm({**config, "teacher_model": dict(config["model"]), "loss_fn": {"_target_": "kd_loss"}}, folder)


def as_seq_cls(config, folder):
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": letter * 5, "label": letter}) + "\n" for letter in "abab"))
    load = "automodel_core.NeMoAutoModelForSequenceClassification.from_pretrained"
    config["model"] |= {"_target_": load, "num_labels": 2}
    config["dataset"] = {"_target_": "classification", "path_or_dataset_id": str(rows), "label_names": ["a", "b"]}
    return with_tokenizer(config, folder)


def as_vlm(config, folder):
    assets = "pkg://automodel_recipes/assets/tiny_llava"
    load = "automodel_core.NeMoAutoModelForImageTextToText.from_config"
    config["model"] = {"_target_": load, "config": assets, "dtype": "float32"}
    config["processor"] = {"pretrained_model_name_or_path": assets, "revision": "main", "subfolder": ""}
    config["dataset"] = config["validation_dataset"] = {"_target_": "mock_vlm", "num_samples": 4}
    config["evaluation"] = {"exact_match": True, "max_new_tokens": 2, "num_rows": 2, "num_samples": 1}
    return config


def as_vlm_kd(config, folder):
    config = as_vlm(config, folder)
    return {**config, "teacher_model": dict(config["model"]), "loss_fn": {"_target_": "kd_loss"}}


RUNS = {
    "KnowledgeDistillationRecipe": as_kd,
    "LLMFinetuneRecipe": as_llm,
    "SequenceClassificationRecipe": as_seq_cls,
    "VLMFinetuneRecipe": as_vlm,
    "VLMKnowledgeDistillationRecipe": as_vlm_kd,
}


def open_trackers(folder, monkeypatch):
    """Read the trackers' sections; their packages are optional, so stand-ins take what is sent."""
    import sys
    from unittest.mock import MagicMock

    from automodel_recipes.loggers.trackers import Trackers

    folder.mkdir()
    for name in ("wandb", "mlflow", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, MagicMock())
    sys.modules["wandb"].init.return_value.id = sys.modules["wandb"].init.return_value.dir = "x"
    sys.modules["mlflow"].MlflowClient.return_value.create_run.return_value.info.run_id = "x"
    example = {"string": "x", "integer": 1, "boolean": True, "array": ["x"], "object": {"x": "y"}}
    sections = {
        name: {
            key: value.schema["enum"][0] if "enum" in value.schema else example[value.schema["type"]]
            for key, value in RECIPES["LLMFinetuneRecipe"][name].keys.items()
        }
        for name in ("wandb", "tensorboard", "mlflow")
    }
    Trackers.from_config(config_from_dict(sections), folder, say=lambda *_: None)
    sent = sys.modules["wandb"].init.call_args.kwargs
    assert {key: sent[key] for key in ("project", "entity", "tags")} == {"project": "x", "entity": "x", "tags": ["x"]}


def read_launchers():
    """Read the sections of jobs, which `launch` reads before any recipe starts."""
    from automodel_recipes.launch.kubernetes import kubernetes_job
    from automodel_recipes.launch.slurm import slurm_job

    mount = {"source": "/data", "dest": "/mnt"}
    assert slurm_job(config_from_dict({"slurm": {"extra_mounts": [mount]}})).extra_mounts[0].dest == "/mnt"
    assert kubernetes_job(config_from_dict({"kubernetes": {"image": "x:1"}})).image == "x:1"


def read_quantization():
    """Read the section where the optional package that it needs may be absent."""
    from automodel_recipes.build.quantization import quantized_loading

    quantised = {
        "load_in_8bit": True,
        "load_in_4bit": False,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_threshold": 6.0,
        "llm_int8_skip_modules": ["lm_head"],
    }
    assert set(quantised) == set(RECIPES["LLMFinetuneRecipe"]["quantization"].keys)
    made = quantized_loading(config_from_dict({"quantization": quantised}), torch.device("cpu"))["quantization_config"]
    for key, value in quantised.items():  # its class swallows what it does not know
        assert str(getattr(made, key)).removeprefix("torch.") == str(value), key


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_declared_key_is_read(recipe, common, seen, tmp_path, monkeypatch):
    from automodel_recipes.run import run

    config = RUNS[recipe]({**common, "recipe": recipe}, tmp_path)
    assert run(config_from_dict(config), TrainOptions(quiet=True)) == 0
    read_quantization()
    read_launchers()
    open_trackers(tmp_path / "trackers", monkeypatch)
    sections = {path.partition(".")[0] for path in seen}
    unread = set(declared_keys(recipe)) - seen - sections
    assert sorted(unread) == []


def test_the_recorder_does_not_note_what_is_not_read(seen):
    config = config_from_dict({"a": {"b": 1, "c": 2}})
    assert config.get("a.b") == 1
    values = config.a.to_dict()
    assert seen == {"a.b", "a"}
    merged = values | {"d": 3}
    assert seen == {"a.b", "a"}
    assert (lambda **keys: keys)(**merged) == {"b": 1, "c": 2, "d": 3}
    assert seen == {"a.b", "a", "a.c", "a.d"}


# What keys are passed to: each keyword that is taken is used, not only accepted.


def taken():
    """``module:name`` of everything that sections hand keys to, and of every registered component."""
    names = {target for sections in RECIPES.values() for section in sections.values() for target in section.takes}
    names |= {point.value for point in components().values() if point.value.startswith("automodel_")}
    return sorted(names)


def unused_keywords(definition):
    """Parameters of a function or constructor that its body does not mention; fields that no code reads."""
    node = definition.node
    if isinstance(node, ast.ClassDef):
        bodies = [s for s in node.body if isinstance(s, ast.FunctionDef) and s.name == "__init__"]
        if not bodies:
            fields = {s.target.id for s in node.body if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)}
            return fields - attributes_read(definition.module.name.partition(".")[0])
        node = bodies[0]
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    mentioned = {n.id for s in node.body for n in ast.walk(s) if isinstance(n, ast.Name)}
    return {argument.arg for argument in arguments if argument.arg != "self"} - mentioned


def attributes_read(package):
    """Every attribute name that is read somewhere in a package, in its siblings' recipes, or listed as text."""
    found = set()
    for top in {package, "automodel_recipes"}:
        root = read_module(top).path.parent
        for path in root.rglob("*.py"):
            for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load):
                    found.add(n.attr)
                elif isinstance(n, ast.Tuple | ast.List):  # `for name in ("account", "partition"): getattr(...)`
                    found |= {e.value for e in n.elts if isinstance(e, ast.Constant) and isinstance(e.value, str)}
    return found


@pytest.mark.parametrize("target", taken())
def test_every_keyword_that_is_taken_is_used(target):
    definition = find_definition(*target.split(":"))
    assert definition is not None
    assert unused_keywords(definition) == set()


def test_an_unused_keyword_is_found(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "half_read.py").write_text("def build(*, a: int, b: int = 0):\n    return a\n")
    assert unused_keywords(find_definition("half_read", "build")) == {"b"}
