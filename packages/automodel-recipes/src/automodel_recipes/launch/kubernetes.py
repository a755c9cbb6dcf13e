"""A Kubernetes job for a configuration: an indexed Job, one pod a node, and a headless service to meet at.

The manifest is data from start to end: commands are lists of words that no shell reads, and ``$(NAME)`` in a word,
which Kubernetes would expand, is escaped. Secrets are taken from a Secret of the cluster by name.
"""

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automodel_core.config import ConfigNode
from automodel_recipes.errors import RecipeError
from automodel_recipes.launch.slurm import NoSchedulerError

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,51}[a-z0-9])?")
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|[kMGTPE]i?)?")
_CONFIG_FOLDER = "/etc/automodel"


@dataclass(frozen=True)
class KubernetesConfig:
    """One job: its image, its pods, and where they keep data.

    Raises: ValueError: a value that Kubernetes would refuse or misread.
    """

    image: str
    """Container image that has ``automodel-recipes`` installed."""
    name: str = "automodel"
    """Of the Job and its service."""
    namespace: str = "default"
    nodes: int = 1
    """Pods; one a node."""
    ntasks_per_node: int = 8
    """Processes in each pod."""
    gpus_per_node: int | None = None
    """``nvidia.com/gpu`` of each pod; None: as many as processes. 0 trains on the CPU."""
    cpu: str | None = None
    memory: str | None = None
    shared_memory: str = "16Gi"
    """Size of ``/dev/shm``, which data workers and NCCL use; the default of 64 MB breaks both."""
    volume_claim: str | None = None
    """PersistentVolumeClaim for data and checkpoints, mounted at ``mount_path``."""
    mount_path: str = "/workspace"
    """Also the working directory."""
    secret: str | None = None
    """Secret whose entries (``HF_TOKEN``, ``WANDB_API_KEY``) become environment variables."""
    master_port: int = 29500
    restarts: int = 6
    """Failed pods that are replaced; pods that the cluster evicts do not count."""

    def __post_init__(self) -> None:
        for key in ("name", "namespace", "volume_claim", "secret"):
            value = getattr(self, key)
            if value is not None and not _LABEL.fullmatch(value):
                raise ValueError(
                    f"kubernetes.{key}={value!r}: lower-case letters, digits and - are allowed, at most 53, and a "
                    "letter or digit at both ends."
                )
        for key in ("cpu", "memory", "shared_memory"):
            value = getattr(self, key)
            if value is not None and not _QUANTITY.fullmatch(str(value)):
                raise ValueError(f"kubernetes.{key}={value!r}: write a quantity such as 8, 500m or 64Gi.")
        for key in ("image", "mount_path"):
            value = getattr(self, key)
            if not value or any(not c.isprintable() or c.isspace() for c in value):
                raise ValueError(f"kubernetes.{key}={value!r}: it must be one word without spaces.")
        if not self.mount_path.startswith("/") or ":" in self.mount_path:
            raise ValueError(f"kubernetes.mount_path={self.mount_path!r}: it must be an absolute path without ':'.")
        for key, least in (("nodes", 1), ("ntasks_per_node", 1), ("master_port", 1), ("restarts", 0)):
            if getattr(self, key) < least:
                raise ValueError(f"kubernetes.{key}={getattr(self, key)}: it must be at least {least}.")


def kubernetes_job(config: ConfigNode) -> KubernetesConfig:
    """The job that the ``kubernetes`` section describes.

    Raises: ConfigError: no image, or a value that Kubernetes would refuse, with its place.
    """
    section = config.get("kubernetes")
    try:
        return KubernetesConfig(**({} if section is None else section.to_dict()))
    except (TypeError, ValueError) as error:
        raise config.error("kubernetes" if section is not None else "", f"kubernetes: {error}") from None


def render_manifest(job: KubernetesConfig, *, config_text: str, options: Sequence[str] = ()) -> str:
    """The YAML of ConfigMap, headless Service and indexed Job that run ``train`` on the configuration.

    Args:
        job: the job.
        config_text: the configuration, which the pods see as ``/etc/automodel/config.yaml``.
        options: further words of ``train``.
    """
    import yaml

    labels = {"app.kubernetes.io/name": "automodel", "automodel/job": job.name}
    parts = [_config_map(job, labels, config_text), _service(job, labels), _job(job, labels, options)]
    return "---\n".join(yaml.safe_dump(part, sort_keys=False, width=10_000) for part in parts)


def pod_command(job: KubernetesConfig, options: Sequence[str], *, node: str) -> list[str]:
    """The words that the pod of a node runs; none of them is read by a shell."""
    return [
        "automodel-recipes",
        "launch",
        "nodes",
        f"{_CONFIG_FOLDER}/config.yaml",
        *(word.replace("$", "$$") for word in options),
        f"--nnodes={job.nodes}",
        f"--node-rank={node}",
        f"--nproc-per-node={job.ntasks_per_node}",
        f"--master-addr={job.name}-0.{job.name}",
        f"--master-port={job.master_port}",
    ]


def apply_manifest(path: Path) -> str:
    """Hand a manifest to ``kubectl``; returns what it says.

    Raises: RecipeError: there is no ``kubectl`` here, or it refused the manifest (its own words are given).
    """
    if shutil.which("kubectl") is None:
        raise NoSchedulerError(
            f"kubectl is not on this machine; {path} was written and not applied. Install kubectl, or apply the file "
            "from a machine that has it: kubectl apply -f FILE."
        )
    done = subprocess.run(["kubectl", "apply", "-f", str(path)], text=True, capture_output=True, check=False)
    if done.returncode:
        raise RecipeError(f"kubectl refused {path}: {done.stderr.strip()}")
    return done.stdout.strip()


def _metadata(job: KubernetesConfig, labels: dict[str, str]) -> dict[str, Any]:
    return {"name": job.name, "namespace": job.namespace, "labels": labels}


def _config_map(job: KubernetesConfig, labels: dict[str, str], config_text: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(job, labels),
        "data": {"config.yaml": config_text},
    }


def _service(job: KubernetesConfig, labels: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(job, labels),
        # Without a cluster address: the name resolves to the pods, ready or not, since they wait for one another.
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": dict(labels),
            "ports": [{"name": "rendezvous", "port": job.master_port}],
        },
    }


def _job(job: KubernetesConfig, labels: dict[str, str], options: Sequence[str]) -> dict[str, Any]:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(job, labels),
        "spec": {
            "completionMode": "Indexed",
            "completions": job.nodes,
            "parallelism": job.nodes,
            "backoffLimit": job.restarts,
            "podFailurePolicy": {
                "rules": [
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                    # A configuration that cannot run will not run the next time.
                    {"action": "FailJob", "onExitCodes": {"containerName": "train", "operator": "In", "values": [2]}},
                ]
            },
            "template": {"metadata": {"labels": dict(labels)}, "spec": _pod(job, options)},
        },
    }


def _pod(job: KubernetesConfig, options: Sequence[str]) -> dict[str, Any]:
    mounts = [
        {"name": "config", "mountPath": _CONFIG_FOLDER, "readOnly": True},
        {"name": "shared-memory", "mountPath": "/dev/shm"},
    ]
    volumes: list[dict[str, Any]] = [
        {"name": "config", "configMap": {"name": job.name}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": job.shared_memory}},
    ]
    if job.volume_claim is not None:
        mounts.append({"name": "work", "mountPath": job.mount_path})
        volumes.append({"name": "work", "persistentVolumeClaim": {"claimName": job.volume_claim}})
    container: dict[str, Any] = {
        "name": "train",
        "image": job.image,
        "command": pod_command(job, options, node="$(JOB_COMPLETION_INDEX)"),
        "workingDir": job.mount_path,
        "resources": {"limits": _limits(job)},
        "volumeMounts": mounts,
    }
    if job.secret is not None:
        container["envFrom"] = [{"secretRef": {"name": job.secret}}]
    return {
        "subdomain": job.name,
        "restartPolicy": "Never",
        # Time for a checkpoint after SIGTERM.
        "terminationGracePeriodSeconds": 600,
        "containers": [container],
        "volumes": volumes,
    }


def _limits(job: KubernetesConfig) -> dict[str, Any]:
    gpus = job.ntasks_per_node if job.gpus_per_node is None else job.gpus_per_node
    limits: dict[str, Any] = {"nvidia.com/gpu": gpus} if gpus else {}
    return limits | {key: str(getattr(job, key)) for key in ("cpu", "memory") if getattr(job, key) is not None}
