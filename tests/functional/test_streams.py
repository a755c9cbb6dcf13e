"""A stream in a recipe is refused in words, with what to do."""


def test_a_stream_is_refused_with_what_to_do(cli, tiny_config):
    tiny_config["dataset"]["_target_"] = "chat_stream"
    run = cli(tiny_config, "out", check=False)
    assert run.exit_code == 2
    assert "dataset is a stream (ChatIterableDataset)" in run.stderr
    assert "Name a map-style dataset" in run.stderr
    assert "Traceback" not in run.stderr
