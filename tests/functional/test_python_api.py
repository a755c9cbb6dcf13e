"""A recipe in a notebook: the same class the command line runs, twice in one process, with no exit and no leak."""

import signal

import pytest
import torch

from automodel_core.config import load_config
from automodel_recipes import LLMFinetuneRecipe


def train_here(path):
    recipe = LLMFinetuneRecipe(load_config(path))
    recipe.setup()
    recipe.train()
    metrics = recipe.evaluate()
    weights = {name: p.detach().clone() for name, p in recipe.model.named_parameters()}
    recipe.close()
    return metrics, weights


@pytest.fixture
def with_validation(tiny_config, chat_rows):
    tiny_config["validation_dataset"] = {"_target_": "chat", "path_or_dataset_id": str(chat_rows), "seq_length": 128}
    tiny_config["step_scheduler"]["max_steps"] = 3
    return tiny_config


def test_twice_in_one_process_gives_the_same_run(with_validation, write_yaml, tmp_path):
    runs, handlers = [], signal.getsignal(signal.SIGINT)
    for name in ("one", "two"):
        with_validation["checkpoint"]["checkpoint_dir"] = str(tmp_path / name)
        runs.append(train_here(write_yaml(with_validation, f"{name}.yaml")))
    (first, one), (second, two) = runs
    assert first == second
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert signal.getsignal(signal.SIGINT) is handlers
    assert not torch.distributed.is_initialized()


def test_python_and_command_line_are_one_run(with_validation, write_yaml, tmp_path, cli):
    command = cli(with_validation, "command")
    with_validation["checkpoint"]["checkpoint_dir"] = str(tmp_path / "python")
    _, weights = train_here(write_yaml(with_validation, "python.yaml"))
    for name, tensor in command.weights().items():
        assert torch.equal(tensor, weights[name]), name
