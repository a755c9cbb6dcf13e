"""`ckpt push`: what goes to the hub, against a stand-in for its client, and what is refused before any call."""

import json

import pytest

from automodel_recipes.cli import main
from automodel_recipes.places import find_place
from automodel_recipes.publishing import plan_publication


class Hub:
    """Takes what `HfApi` would send; a list of calls and the files of the last commit."""

    def __init__(self, failure=None):
        self.calls, self.files, self.failure = [], {}, failure

    def create_repo(self, repo_id, **keys):
        if self.failure is not None:
            raise self.failure
        self.calls.append(("create", repo_id, keys))

    def create_commit(self, repo_id, *, operations, commit_message, revision):
        self.calls.append(("commit", repo_id, commit_message, revision))
        for operation in operations:
            with operation.as_file() as file:
                self.files[operation.path_in_repo] = file.read()
        return f"https://hub.example/{repo_id}/commit/1"


@pytest.fixture
def hub(monkeypatch):
    made = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: made)
    return made


@pytest.fixture
def run(tmp_path):
    """A finished LoRA run with files that must stay at home."""
    run = tmp_path / "run"
    final = run / "final"
    (final / ".cache").mkdir(parents=True)
    (final / "adapter_config.json").write_text(json.dumps({"r": 4, "base_model_name_or_path": "/home/me/llama"}))
    (final / "adapter_model.safetensors").write_bytes(b"weights")
    (final / "tokenizer.json").write_text("{}")
    (final / "optimizer.pt").write_bytes(b"pickle")
    (final / ".cache" / "token.json").write_text("secret")
    (run / "run.json").write_text(json.dumps({"format": 1, "status": "finished", "config": {}, "versions": {}}))
    rows = [{"kind": "train", "step": 7, "loss": 1.0}, {"kind": "val", "step": 7, "name": "val", "loss": 1.25}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def test_an_adapter_goes_up_with_its_base_and_a_card_and_nothing_else(run, hub, capsys):
    words = ["--base-model", "org/llama", "--revision", "dev", "--message", "v1"]
    assert main(["ckpt", "push", str(run), "me/orders", *words]) == 0
    assert hub.calls == [
        ("create", "me/orders", {"private": True, "exist_ok": True}),
        ("commit", "me/orders", "v1", "dev"),
    ]
    assert set(hub.files) == {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md"}
    assert hub.files["adapter_model.safetensors"] == b"weights"
    assert json.loads(hub.files["adapter_config.json"]) == {"r": 4, "base_model_name_or_path": "org/llama"}
    card = hub.files["README.md"].decode()
    assert "base_model: org/llama" in card
    assert "| val/loss | 1.25 |" in card
    assert "After 7 optimizer steps" in card
    assert "/home/me" not in card
    shown = capsys.readouterr().out
    assert "left out optimizer.pt" in shown
    assert "token.json" not in shown
    assert "pushed   https://hub.example/me/orders/commit/1" in shown


def test_a_dry_run_calls_nobody(run, hub, capsys):
    assert main(["ckpt", "push", str(run), "me/orders", "--base-model", "org/llama", "--dry-run"]) == 0
    assert hub.calls == []
    assert "file     README.md (written for the upload)" in capsys.readouterr().out


def test_a_model_with_a_card_keeps_it(tmp_path, hub):
    for name, text in (("config.json", "{}"), ("README.md", "mine"), ("model.safetensors", "w")):
        (tmp_path / name).write_text(text)
    assert main(["ckpt", "push", str(tmp_path), "me/m", "--public"]) == 0
    assert hub.calls[0][2]["private"] is False
    assert hub.files["README.md"] == b"mine"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["me/orders"], "names the base model '/home/me/llama', which others do not have"),
        (["orders", "--base-model", "org/llama"], "'orders' is no repository name. Write OWNER/NAME"),
        (["../x/y", "--base-model", "org/llama"], "is no repository name"),
    ],
)
def test_what_cannot_be_published_is_refused(run, hub, capsys, words, told):
    assert main(["ckpt", "push", str(run), *words]) == 1
    assert told in capsys.readouterr().err
    assert hub.calls == []


def test_a_training_checkpoint_is_refused_with_the_command_to_run_first(run):
    (run / "step-00000007").mkdir()
    with pytest.raises(Exception, match=r"a training checkpoint, which others cannot load.*ckpt export"):
        plan_publication(find_place(f"{run}@7"))


def test_a_hub_that_refuses_is_told_in_words(run, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: Hub(ConnectionError("offline mode is enabled.")))
    assert main(["ckpt", "push", str(run), "me/orders", "--base-model", "org/llama"]) == 1
    assert "the hub did not take me/orders: offline mode is enabled. Check HF_TOKEN" in capsys.readouterr().err
