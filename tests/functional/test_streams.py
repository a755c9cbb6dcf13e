"""Streams and mixtures from YAML: trained, resumed and looked at through the command line."""

import json

import pytest

ROWS = [{"prompt": f"{i}?", "completion": "yes" if i % 2 else "no " * (1 + i % 3)} for i in range(40)]


@pytest.fixture
def streaming(tiny_config, tmp_path):
    """A configuration whose dataset is a stream, two of its forty lines broken."""
    lines = [json.dumps(row) for row in ROWS]
    lines[3] = lines[20] = "{broken"
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    tiny_config["dataset"] = {"_target_": "chat_stream", "path_or_dataset_id": str(tmp_path / "rows.jsonl")}
    tiny_config["dataloader"] = {"shuffle_block": 16}
    tiny_config["step_scheduler"] = {"global_batch_size": 4, "local_batch_size": 2, "max_steps": 12}
    return tiny_config


@pytest.fixture
def command(write_yaml, capsys):
    """Run a command on a configuration in this process; its exit code and what it printed."""
    from automodel_recipes.cli.app import main

    def run(config, *words):
        words, options = [word for word in words if word[0] != "-"], [word for word in words if word[0] == "-"]
        code = main([*words, str(write_yaml(config)), *options])
        return code, "".join(capsys.readouterr())

    return run


def test_a_stream_without_an_end_is_refused_with_what_to_do(cli, streaming):
    del streaming["step_scheduler"]["max_steps"]
    run = cli(streaming, "out", check=False)
    assert run.exit_code == 2
    assert "dataset is a stream (ChatIterableDataset)" in run.stderr
    assert "Set step_scheduler.max_steps" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.more
def test_a_stream_trains_and_a_resumed_run_equals_an_uninterrupted_one(cli, streaming):
    streaming["checkpoint"] = {"enabled": True}
    streaming["step_scheduler"]["ckpt_every_steps"] = 5
    whole = cli(streaming, "whole")
    assert "train a stream of rows" in whole.stdout
    cli(streaming, "parts", "--max-steps", "5")
    resumed = cli(streaming, "parts", "--resume", "auto")
    assert resumed.train("loss") == whole.train("loss")
    assert resumed.train("step") == list(range(1, 13))
    for name, weight in whole.weights().items():
        assert (resumed.weights()[name] == weight).all(), name


@pytest.mark.more
def test_a_packed_stream_with_workers_equals_one_without(cli, streaming):
    streaming["packed_sequence"] = {"packed_sequence_size": 64}
    alone = cli(streaming, "alone", "step_scheduler.max_steps=4")
    helped = cli(streaming, "helped", "step_scheduler.max_steps=4", "dataloader.num_workers=1")
    assert alone.train("loss") == helped.train("loss")


def test_a_block_to_shuffle_within_is_for_streams(cli, streaming):
    streaming["dataset"]["_target_"] = "chat"
    streaming["dataset"]["max_bad_fraction"] = 0.5
    run = cli(streaming, "out", check=False)
    assert run.exit_code == 4
    assert "shuffle_block=16: ChatDataset has random access and is shuffled whole" in run.stderr


def test_show_and_check_look_at_the_first_rows_of_a_stream(command, streaming):
    _, shown = command(streaming, "data", "show", "--rows=2", "--start=3")
    assert "row 3: " in shown
    assert shown.count("tokens, ") == 2
    code, checked = command(streaming, "data", "check", "--max-rows=9", "--strict")
    assert code == 4
    assert "rows        9" in checked
    assert "rows.jsonl:4: broken JSON" in checked


@pytest.mark.more
@pytest.mark.parametrize("kind", ["", "_stream"])
def test_a_mixture_gives_its_sources_the_tokenizer(kind, cli, command, streaming, tmp_path):
    (tmp_path / "more.jsonl").write_text("\n".join(json.dumps({"q": f"{i}", "a": "maybe"}) for i in range(9)))
    chat = {**streaming["dataset"], "_target_": f"chat{kind}", "max_bad_fraction": 0.5}
    columns = {"question": "q", "answer": "a"}
    more = {"path_or_dataset_id": str(tmp_path / "more.jsonl"), "column_mapping": columns}
    streaming["dataset"] = {
        "_target_": f"mixture{kind}",
        "datasets": {"chats": chat, "more": {"_target_": f"column_mapped{kind}", **more}},
        "weights": {"chats": 0.7, "more": 0.3},
        "num_samples": 40,
    }
    if not kind:
        del streaming["dataloader"]
    assert command(streaming, "validate")[0] == 0
    run = cli(streaming, "out", "step_scheduler.max_steps=3")
    assert len(run.train("loss")) == 3
    streaming["dataset"]["datasets"]["chats"] = {"_target_": "torch.nn.Linear"}
    assert "dataset.datasets.chats._target_" in command(streaming, "validate")[1]
    streaming["dataset"]["datasets"]["chats"] = chat
    del streaming["dataset"]["datasets"]["more"]["column_mapping"]
    code, wrong = command(streaming, "validate")
    assert code == 2
    assert "dataset.datasets.more" in wrong
    assert "needs 'column_mapping'" in wrong
