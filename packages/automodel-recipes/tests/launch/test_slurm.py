import shlex
import subprocess

import pytest

from automodel_recipes.cli.app import main
from automodel_recipes.launch.slurm import SlurmConfig, VolumeMapping, render_script
from automodel_recipes.shipped import find_shipped

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
@pytest.mark.parametrize("where", ["argument", "hf_home", "container_image", "mount", "chdir", "output"])
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
    inner = shlex.split(line.removesuffix(" || code=$?"))[-1]
    words = shlex.split(inner)
    start = words.index("automodel-recipes")
    assert words[start : start + 4] == ["automodel-recipes", "train", "my config.yaml", "a.b='x y';"]


def stubs(directory, **bodies):
    directory.mkdir()
    for name, body in bodies.items():
        (directory / name).write_text(f"#!/bin/bash\n{body}\n")
        (directory / name).chmod(0o755)


def run_script(tmp_path, *, code, state="RUNNING", **keys):
    """The script in a real shell; the training ends with ``code``. Returns its own exit code and what was requeued."""
    stubs(
        tmp_path / "bin",
        scontrol='[ "$1" = requeue ] && echo "$2" >> "$OUT" || echo host',
        squeue=f"echo {state}",
        srun='while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
        **{"automodel-recipes": f"exit {code}"},
    )
    environment = {
        "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",
        "OUT": str(tmp_path / "requeued"),
        "SLURM_JOB_NODELIST": "host",
        "SLURM_JOB_ID": "7",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NTASKS": "1",
    }
    script = render_script(SlurmConfig(**keys), ["train", "c.yaml"])
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, timeout=20, capture_output=True)
    requeued = tmp_path / "requeued"
    return done.returncode, requeued.read_text().split() if requeued.exists() else []


@pytest.mark.parametrize("code", [138, 143])
def test_a_job_that_was_stopped_is_queued_again(code, tmp_path):
    assert run_script(tmp_path, code=code) == (code, ["7"])


@pytest.mark.parametrize("code", [0, 1, 2, 3, 5, 6, 137])
def test_a_job_that_ended_or_failed_is_not_queued_again(code, tmp_path):
    ended, requeued = run_script(tmp_path, code=code)
    assert requeued == []
    assert ended == (255 if code == 137 else code)


def test_a_cancelled_job_and_one_without_requeue_stay_ended(tmp_path):
    assert run_script(tmp_path, code=143, state="COMPLETING") == (143, [])
    (tmp_path / "again").mkdir()
    assert run_script(tmp_path / "again", code=143, requeue=False) == (143, [])


def test_tasks_see_what_the_script_exports():
    """sbatch hands its --export on to srun, which would hide MASTER_ADDR from the tasks."""
    (line,) = [line for line in render_script(SlurmConfig(), ["train"]).splitlines() if line.startswith("srun")]
    assert "--export=ALL" in line.split()


def test_without_sbatch_the_script_is_printed(tmp_path, monkeypatch, capsys):
    config = str(find_shipped("demo_lora").path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    for name in ("RANK", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    for command in (["launch", "slurm"], ["train"]):
        assert main([*command, config, "slurm.job_name=mine"]) == 2
        out, err = capsys.readouterr()
        assert "#SBATCH --job-name=mine" in out
        assert "sbatch is not on this machine" in err
        assert "apt-get install slurm-client" in err
        assert (tmp_path / "demo_lora.sbatch").read_text() in out


def test_a_slurm_section_submits_and_says_how_not_to(tmp_path, monkeypatch, capsys):
    config = str(find_shipped("demo_lora").path)
    stubs(tmp_path / "bin", sbatch='cp "$2" "$OUT"; echo "17;cluster"')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("OUT", str(tmp_path / "submitted"))
    for name in ("RANK", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    assert main(["train", config, "slurm.nodes=2", "slurm.ntasks_per_node=4", "seed=3", "--max-steps", "5"]) == 0
    out = capsys.readouterr().out
    assert "submitted job 17" in out
    assert "node 1: ranks 4-7 of 8: automodel-recipes train" in out
    assert "~slurm" in out
    script = (tmp_path / "submitted").read_text()
    assert "seed=3 --max-steps 5 --resume auto" in script
    assert "slurm.nodes" not in script
