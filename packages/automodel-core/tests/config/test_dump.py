"""A saved configuration is the configuration."""

import pytest

from automodel_core.config import load_config

TEXT = """\
a: {int: 1, float: 1.0e-05, small: 1e-4, none: null, yes: true, word: no, date: 2024-01-31}
strings: ['1', '1e-4', 'true', 'None', '', ' x ', "a: b", '# c', "it's", "two\\nlines", 'é', '012', '${', '[x']
reference: ${NUMBER}
quoted: '${NUMBER}'
mixed: x-${NUMBER}
literal: $${NUMBER}
secret: ${A_TOKEN}
empty: {}
none: []
nested: [[1, [2]], {a: [{b: 1}]}]
base: &base {x: 1}
other: {<<: *base, y: 2}
"""


@pytest.mark.parametrize("number", ["1e-3", "word"])
def test_round_trip(tmp_path, number):
    environment = {"NUMBER": number, "A_TOKEN": "canary"}
    path = tmp_path / "c.yaml"
    path.write_text(TEXT.replace("'${', ", ""))
    config = load_config(path, ["a.int=2", "a.extra=[1, x]"], environment=environment)
    saved = tmp_path / "saved.yaml"
    saved.write_text(config.to_yaml())
    again = load_config(saved, environment=environment)
    assert repr(again.to_dict()) == repr(config.to_dict())
    assert again.to_yaml() == config.to_yaml()
    assert again.secret.reveal() == "canary"
    assert "canary" not in saved.read_text()


def test_references_stay(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("a: ${X,1}\nb: '${X,1}'\napi_key: sk-123\n")
    assert load_config(path).to_yaml() == "a: ${X,1}\nb: '${X,1}'\napi_key: '***'\n"
