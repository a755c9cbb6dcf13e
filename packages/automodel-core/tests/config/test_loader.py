"""Positions, types and refusals of configuration files."""

from pathlib import Path

import pytest

from automodel_core.config import ConfigError, load_config


def write(folder: Path, text: str | bytes, name: str = "c.yaml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problems(path: Path, *overrides: str, **options) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides, **options)
    return [str(problem).replace(str(path), "c.yaml") for problem in caught.value.problems]


def test_every_value_knows_its_line_and_column(tmp_path):
    path = write(tmp_path, "a:\n  b: 1\n  list:\n    - x\n    - {deep: 2.5}\n")
    config = load_config(path)
    places = {
        name: (config.source(name).line, config.source(name).column) for name in ("a.b", "a.list.0", "a.list.1.deep")
    }
    assert places == {"a.b": (2, 6), "a.list.0": (4, 7), "a.list.1.deep": (5, 14)}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("5.0e-4", 5e-4),
        (".5", 0.5),
        ("1_000", 1000),
        ("-3", -3),
        ("0x10", 16),
        ("012", "012"),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("None", None),
        ("~", None),
        ("", None),
        ("2024-01-31", "2024-01-31"),
        ("1:30", "1:30"),
        ("-.inf", float("-inf")),
        ("1.2.3", "1.2.3"),
        ("'1'", "1"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_scalars_have_the_type_that_people_mean(tmp_path, text, value):
    found = load_config(write(tmp_path, f"a: {text}\n")).a
    assert found == value
    assert type(found) is type(value)


def test_merge_keys_are_filled_in_and_own_keys_win(tmp_path):
    config = load_config(write(tmp_path, "base: &b {x: 1, y: 2}\nother:\n  <<: *b\n  y: 3\n"))
    assert config.other.to_dict() == {"y": 3, "x": 1}


def test_an_override_of_an_aliased_section_leaves_the_other_alone(tmp_path):
    config = load_config(write(tmp_path, "a: &a {x: 1}\nb: *a\n"), ["b.x=2"])
    assert (config.a.x, config.b.x) == (1, 2)


def test_json_with_tabs_is_accepted(tmp_path):
    config = load_config(write(tmp_path, '{\n\t"a": {"b": [1, 2.5, null, true]},\n\t"c": "x"\n}', "c.json"))
    assert config.to_dict() == {"a": {"b": [1, 2.5, None, True]}, "c": "x"}
    assert (config.source("a.b.1").line, config.source("a.b.1").column) == (2, 17)


def test_missing_file(tmp_path):
    assert problems(tmp_path / "c.yaml") == ["c.yaml: no such file; give the path of a YAML file"]


def test_directory(tmp_path):
    assert problems(tmp_path)[0].endswith("cannot be read (Is a directory); give the path of a readable YAML file")


def test_duplicate_keys_are_all_listed(tmp_path):
    path = write(tmp_path, "a:\n  x: 1\n  x: 2\nb: 1\nb: 2\n")
    assert problems(path) == [
        "c.yaml:3:3 a.x: duplicate key, first given on line 2; keep one of the two",
        "c.yaml:5:1 b: duplicate key, first given on line 4; keep one of the two",
    ]


def test_tab(tmp_path):
    assert problems(write(tmp_path, "a:\n\tb: 1\n")) == ["c.yaml:2:1: a tab cannot indent YAML; use spaces"]


def test_anchor_that_contains_itself(tmp_path):
    message = "an anchor contains itself; an alias cannot stand inside its own anchor"
    assert problems(write(tmp_path, "a: &x\n  b: [*x]\n")) == [f"c.yaml:1:4 a.b.0: {message}"]


def test_undefined_alias(tmp_path):
    (problem,) = problems(write(tmp_path, "a: *nope\n"))
    assert problem == "c.yaml:1:4: found undefined alias 'nope'; define the anchor with & before the line that uses it"


def test_aliases_that_expand_without_end(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert "aliases expand to more than 50000 values; write fewer" in problems(write(tmp_path, "\n".join(lines)))[0]


@pytest.mark.parametrize("depth", [100, 100_000])
def test_deep_nesting(tmp_path, depth):
    assert "nested deeper than 64 levels; flatten it" in problems(write(tmp_path, f"a: {'[' * depth}{']' * depth}"))[0]


def test_ten_megabytes(tmp_path):
    (problem,) = problems(write(tmp_path, b"a: 1\n" * 2_000_000))
    assert problem == "c.yaml: larger than 1 MiB; a configuration holds settings: keep data in files of its own"


def test_not_utf8(tmp_path):
    (problem,) = problems(write(tmp_path, b"a: 1\nname: caf\xe9\n"))
    assert problem == "c.yaml:2:10: byte 0xe9 is not UTF-8; save the file as UTF-8"


def test_control_character(tmp_path):
    assert problems(write(tmp_path, "a: 1\nb: \x07\n")) == [
        "c.yaml:2:4: character U+0007 is not allowed in YAML; remove it"
    ]


def test_empty_file(tmp_path):
    message = "is empty; a configuration is a mapping of sections such as model: and dataset:"
    assert problems(write(tmp_path, "# nothing\n")) == [f"c.yaml: {message}"]


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n"])
def test_not_a_mapping(tmp_path, text):
    assert "a configuration is a mapping of sections" in problems(write(tmp_path, text))[0]


def test_second_document(tmp_path):
    assert problems(write(tmp_path, "a: 1\n---\nb: 2\n")) == [
        "c.yaml:2:1: a second document begins here; a configuration is one document: remove '---'"
    ]


def test_python_tags_are_refused(tmp_path):
    (problem,) = problems(write(tmp_path, "a: !!python/object/apply:os.system [echo]\n"))
    assert problem.startswith("c.yaml:1:4 a: tag !!python/object/apply:os.system is not allowed")


def test_unbalanced_bracket_says_where(tmp_path):
    assert problems(write(tmp_path, "a: [1, 2\nb: 3\n"))[0].startswith("c.yaml:2:2: not valid YAML")


def test_key_that_is_a_list(tmp_path):
    assert problems(write(tmp_path, "? [a, b]\n: 1\n")) == ["c.yaml:1:3: a key must be a word, not a list or mapping"]
