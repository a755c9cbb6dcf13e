import shlex
import subprocess

import pytest

from automodel_recipes.launch.slurm import SlurmConfig, VolumeMapping, render_script

HOSTILE = ["a; touch pwned", "$(touch pwned)", "`touch pwned`", "a\ntouch pwned", 'a" b', "a' b", "-x y", "a|b", "a&b"]


def test_script_asks_for_what_the_config_says():
    slurm = SlurmConfig(job_name="run-1", nodes=2, ntasks_per_node=4, account="lab", time="1-00:00:00")
    script = render_script(slurm, ["train", "c.yaml"])
    for option in ("--job-name=run-1", "--nodes=2", "--ntasks-per-node=4", "--account=lab", "--time=1-00:00:00"):
        assert f"#SBATCH {option}\n" in script
    assert "--requeue" in script
    assert "automodel-recipes train c.yaml" in script


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("name", ["job_name", "account", "partition"])
def test_hostile_names_are_refused(name, value):
    with pytest.raises(ValueError, match=f"slurm.{name}"):
        SlurmConfig(**{name: value})


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("where", ["argument", "hf_home", "container_image", "mount"])
def test_hostile_paths_are_quoted_or_refused(where, value, tmp_path):
    """The script runs in a real shell, with srun and scontrol replaced: nothing from a value is executed."""
    keys, arguments = {}, ["train", "c.yaml"]
    if where == "argument":
        arguments.append(value)
    elif where == "mount":
        keys = {"container_image": "image", "extra_mounts": (VolumeMapping(value, "/data"),)}
    else:
        keys = {where: value}
    try:
        script = render_script(SlurmConfig(**keys), arguments)
    except ValueError:
        return
    bin_directory = tmp_path / "bin"
    bin_directory.mkdir()
    for name, body in (
        ("scontrol", "echo host"),
        ("srun", 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"'),
        ("automodel-recipes", 'printf "%s\\n" "$@" > "$OUT"'),
    ):
        (bin_directory / name).write_text(f"#!/bin/bash\n{body}\n")
        (bin_directory / name).chmod(0o755)
    environment = {
        "PATH": f"{bin_directory}:/usr/bin:/bin",
        "OUT": str(tmp_path / "arguments"),
        "SLURM_JOB_NODELIST": "host",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NTASKS": "1",
    }
    subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, check=True, timeout=20)
    assert not (tmp_path / "pwned").exists()
    assert (tmp_path / "arguments").read_text() == "\n".join(arguments) + "\n"


def test_no_value_of_a_secret_is_written(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "canary-1234")
    script = render_script(SlurmConfig(), ["train", "c.yaml"])
    assert "canary-1234" not in script
    assert "HF_TOKEN" in script


def test_the_command_survives_quoting_twice():
    script = render_script(SlurmConfig(), ["train", "my config.yaml", "a.b='x y'"])
    (line,) = [line for line in script.splitlines() if line.startswith("srun")]
    inner = shlex.split(line)[-1]
    assert shlex.split(inner.partition("exec ")[2]) == ["automodel-recipes", "train", "my config.yaml", "a.b='x y'"]
