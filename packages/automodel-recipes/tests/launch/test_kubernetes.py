import pytest
import yaml

from automodel_recipes.cli.app import main
from automodel_recipes.launch.kubernetes import KubernetesConfig, render_manifest
from automodel_recipes.shipped import find_shipped

HOSTILE = [
    "a; touch pwned",
    "$(touch pwned)",
    "`touch pwned`",
    "a\nkind: Secret",
    'a" b',
    "a' b",
    "-x y",
    "a: b",
    "{a}",
]


def parts(**keys):
    text = render_manifest(KubernetesConfig(image="registry/image:1", **keys), config_text="seed: 1\n")
    return {part["kind"]: part for part in yaml.safe_load_all(text)}


def test_pods_meet_at_the_first_one_through_a_headless_service():
    found = parts(name="run", nodes=4, ntasks_per_node=8)
    service, job = found["Service"]["spec"], found["Job"]["spec"]
    assert service["clusterIP"] == "None"
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"] == 4
    pod = job["template"]["spec"]
    assert pod["subdomain"] == found["Service"]["metadata"]["name"] == "run"
    assert service["selector"] == job["template"]["metadata"]["labels"]
    (container,) = pod["containers"]
    assert "--node-rank=$(JOB_COMPLETION_INDEX)" in container["command"]
    assert "--master-addr=run-0.run" in container["command"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert found["ConfigMap"]["data"] == {"config.yaml": "seed: 1\n"}


def test_secrets_come_from_the_cluster():
    (container,) = parts(secret="tokens")["Job"]["spec"]["template"]["spec"]["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "tokens"}}]


def test_an_evicted_pod_does_not_count_as_a_failure():
    rules = parts()["Job"]["spec"]["podFailurePolicy"]["rules"]
    assert rules[0] == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize(
    "name", ["name", "namespace", "volume_claim", "secret", "cpu", "memory", "shared_memory", "image", "mount_path"]
)
def test_hostile_values_are_refused(name, value):
    if name == "image" and not any(c.isspace() for c in value):
        pytest.skip("an image is one word that no shell reads")
    with pytest.raises(ValueError, match=f"kubernetes.{name}"):
        KubernetesConfig(**{"image": "image", name: value})


@pytest.mark.parametrize("value", [*HOSTILE, "$(JOB_COMPLETION_INDEX)", "--- \nkind: Pod"])
def test_hostile_overrides_stay_values_of_the_config(value, tmp_path, capsys):
    config = tmp_path / "my config.yaml"
    config.write_text(find_shipped("demo_lora").path.read_text())
    words = [
        "kubernetes.image=image",
        f"checkpoint.checkpoint_dir={yaml.safe_dump(value, default_style=chr(34)).strip()}",
    ]
    assert main(["launch", "k8s", str(config), *words, "--dry-run"]) == 0
    kinds = list(yaml.safe_load_all(capsys.readouterr().out))
    assert [part["kind"] for part in kinds] == ["ConfigMap", "Service", "Job"]
    inside = yaml.safe_load(kinds[0]["data"]["config.yaml"])
    assert inside["checkpoint"]["checkpoint_dir"] == value
    assert "pwned" not in str(kinds[2])


def test_variables_of_kubernetes_in_words_are_escaped():
    text = render_manifest(KubernetesConfig(image="i"), config_text="", options=["--allow-target", "$(HOME)"])
    job = list(yaml.safe_load_all(text))[2]
    assert "$$(HOME)" in job["spec"]["template"]["spec"]["containers"][0]["command"]


def test_without_kubectl_the_manifest_is_printed(tmp_path, monkeypatch, capsys):
    config = str(find_shipped("demo_lora").path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["launch", "k8s", config, "kubernetes.image=image"]) == 2
    out, err = capsys.readouterr()
    assert "kind: Job" in out
    assert "kubectl is not on this machine" in err


def test_a_missing_image_is_told_with_its_place(capsys):
    assert main(["launch", "k8s", str(find_shipped("demo_lora").path), "kubernetes.nodes=2", "--dry-run"]) == 2
    assert "image" in capsys.readouterr().err
