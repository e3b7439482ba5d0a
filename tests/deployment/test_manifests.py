"""Compose file and manifests agree with each other and with the program, where no schema can say so."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from chaperone_common.settings import load_yaml
from cloud_supervisor.config import CloudConfig
from edge_client.config import EdgeConfig
from tests.support.processes.commands import ROOT

DOCKER = ROOT / "docker"
USER = 10001  # of both Dockerfiles
TIME_TO_END_S = 10  # after the grace, for threads and connections


def manifests() -> dict[tuple[str, str], Any]:
    """Return the manifests by kind and name."""
    paths = [*DOCKER.glob("k8s/*.yaml"), *DOCKER.glob("k8s/templates/*.yaml")]
    found = [document for path in paths for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))]
    return {(document["kind"], document["metadata"]["name"]): document for document in found}


def compose() -> Any:
    """Return the Compose file, with its anchors resolved."""
    return yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))


def pods() -> Iterator[tuple[str, Any]]:
    """Yield the name and the pod of each workload."""
    for (kind, name), manifest in manifests().items():
        if kind in {"Deployment", "Job"}:
            yield name, manifest["spec"]["template"]["spec"]


def settings_in_kubernetes() -> Any:
    return yaml.safe_load(manifests()["ConfigMap", "chaperone-cloud"]["data"]["cloud.yaml"])


def settings_in_compose() -> Any:
    return yaml.safe_load((DOCKER / "compose" / "cloud.yaml").read_text(encoding="utf-8"))


# --- Settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [settings_in_kubernetes, settings_in_compose])
def test_the_cloud_accepts_its_settings(settings: Any, tmp_path: Path) -> None:
    path = tmp_path / "cloud.yaml"
    path.write_text(yaml.safe_dump(settings()), encoding="utf-8")
    load_yaml(path, CloudConfig)


def test_the_device_accepts_its_settings() -> None:
    load_yaml(DOCKER / "compose" / "edge.yaml", EdgeConfig)


@pytest.mark.parametrize("settings", [settings_in_kubernetes, settings_in_compose])
def test_the_cloud_listens_for_others_with_tls_and_tokens(settings: Any) -> None:
    config = settings()
    assert config["listen"] == "0.0.0.0:50151"
    assert config["metrics"] == "0.0.0.0:9464"
    assert set(config["tls"]) >= {"cert_file", "key_file"}
    assert config["tokens_file"]
    assert "insecure" not in config


def test_a_container_lives_until_its_streams_had_their_grace() -> None:
    in_kubernetes = settings_in_kubernetes()
    needed = in_kubernetes["lame_duck_seconds"] + in_kubernetes["grace_seconds"] + TIME_TO_END_S
    assert dict(pods())["chaperone-cloud"]["terminationGracePeriodSeconds"] >= needed
    in_compose = settings_in_compose()
    needed = in_compose["lame_duck_seconds"] + in_compose["grace_seconds"] + TIME_TO_END_S
    for name in ("cloud-a", "cloud-b"):
        assert float(compose()["services"][name]["stop_grace_period"].removesuffix("s")) >= needed


def test_the_model_leaves_a_processor_to_the_rest_of_the_server() -> None:
    limits = dict(pods())["chaperone-cloud"]["containers"][0]["resources"]["limits"]
    assert settings_in_kubernetes()["threads"] == int(limits["cpu"]) - 1
    for name in ("cloud-a", "cloud-b"):
        cpus = compose()["services"][name]["deploy"]["resources"]["limits"]["cpus"]
        assert settings_in_compose()["threads"] == int(cpus) - 1


# --- Kubernetes ------------------------------------------------------------------------------------------------------


def test_all_lies_in_the_namespace_that_comes_first() -> None:
    first, *_ = sorted(path.name for path in DOCKER.glob("k8s/*.yaml"))
    assert first == "00-namespace.yaml"
    for (kind, name), manifest in manifests().items():
        assert (kind == "Namespace" and name == "chaperone") or manifest["metadata"]["namespace"] == "chaperone"


def test_pods_run_without_rights() -> None:
    for _, pod in pods():
        assert pod["automountServiceAccountToken"] is False
        security = pod["securityContext"]
        assert security["runAsNonRoot"]
        assert (security["runAsUser"], security["runAsGroup"], security["fsGroup"]) == (USER, USER, USER)
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
            assert writable <= {"/var/lib/chaperone", "/tmp"}


def test_each_volume_has_its_source_and_the_settings_name_files_in_them() -> None:
    known = manifests()
    pod = dict(pods())["chaperone-cloud"]
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    files: dict[str, str] = {}  # path in the container -> volume
    for volume in pod["volumes"]:
        name = volume["name"]
        if "secret" in volume:
            keys = known["Secret", volume["secret"]["secretName"]]["stringData"]
        elif "configMap" in volume:
            keys = known["ConfigMap", volume["configMap"]["name"]]["data"]
        else:
            assert name == "tmp" or ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in known
            continue
        files |= {f"{mounts[name]}/{key}": name for key in keys}
    config = settings_in_kubernetes()
    assert {config["tls"]["cert_file"], config["tls"]["key_file"], config["tokens_file"]} <= files.keys()
    assert pod["containers"][0]["args"] == ["serve", "--config", next(path for path in files if "cloud.yaml" in path)]


def test_probes_ask_what_the_kubelet_should_do() -> None:
    (container,) = dict(pods())["chaperone-cloud"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": 50151, "metrics": 9464}
    paths = {name: container[name]["httpGet"]["path"] for name in container if name.endswith("Probe")}
    assert paths == {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/healthz"}
    assert all(container[name]["httpGet"]["port"] == "metrics" for name in paths)


def test_selectors_find_the_replicas() -> None:
    known = manifests()
    labels = known["Deployment", "chaperone-cloud"]["spec"]["template"]["metadata"]["labels"]
    selectors = [
        known["Deployment", "chaperone-cloud"]["spec"]["selector"]["matchLabels"],
        known["Service", "chaperone-cloud"]["spec"]["selector"],
        known["Service", "chaperone-cloud-public"]["spec"]["selector"],
        known["PodDisruptionBudget", "chaperone-cloud"]["spec"]["selector"]["matchLabels"],
        known["NetworkPolicy", "chaperone-cloud"]["spec"]["podSelector"]["matchLabels"],
    ]
    assert selectors == [labels] * len(selectors)
    assert known["Service", "chaperone-cloud"]["spec"]["clusterIP"] == "None"
    target = known["HorizontalPodAutoscaler", "chaperone-cloud"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", "chaperone-cloud")


def test_the_adapter_makes_the_metric_of_the_autoscaler() -> None:
    rules = yaml.safe_load((DOCKER / "monitoring" / "adapter-rules.yaml").read_text(encoding="utf-8"))["rules"]
    made = {rule["name"]["as"] for rule in rules}
    (metric,) = manifests()["HorizontalPodAutoscaler", "chaperone-cloud"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] in made


def test_the_templates_hold_no_secret() -> None:
    for (kind, _), manifest in manifests().items():
        if kind == "Secret":
            assert "data" not in manifest
            assert all(value.startswith("REPLACE with ") for value in manifest["stringData"].values())


# --- Compose ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(compose()["services"]))
def test_a_service_of_compose_is_hardened(name: str) -> None:
    service = compose()["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"].partition(":")[0] != "0"
    assert "healthcheck" in service
    assert {"cpus", "memory", "pids"} <= service["deploy"]["resources"]["limits"].keys()
    assert not {"privileged", "cap_add", "network_mode", "pid"} & service.keys()
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    bound = [volume for volume in service.get("volumes", ()) if volume.startswith("./")]
    assert all(volume.endswith(":ro") for volume in bound)
    made = [volume for volume in bound if not volume.startswith("./secrets/")]  # these the operator makes
    assert all((DOCKER / volume.split(":")[0]).exists() for volume in made)


def test_metrics_leave_by_grafana_alone() -> None:
    file = compose()
    assert file["networks"]["monitoring"] == {"internal": True}
    connected = {name for name, service in file["services"].items() if "monitoring" in service["networks"]}
    assert connected == {"cloud-a", "cloud-b", "grafana", "prometheus"}
    assert "ports" not in file["services"]["prometheus"]


def test_prometheus_watches_both_clouds() -> None:
    config = yaml.safe_load((DOCKER / "monitoring" / "prometheus.yaml").read_text(encoding="utf-8"))
    ((static,),) = [scrape["static_configs"] for scrape in config["scrape_configs"]]
    assert static["targets"] == ["cloud-a:9464", "cloud-b:9464"]
    mounted = {volume.split(":")[1] for volume in compose()["services"]["prometheus"]["volumes"]}
    assert set(config["rule_files"]) <= mounted


def test_git_ignores_the_secrets_of_compose() -> None:
    files = [secret["file"] for secret in compose()["secrets"].values()]
    files.append(compose()["services"]["cloud-a"]["volumes"][0].partition(":")[0] + "/")
    assert all(file.startswith("./secrets/") for file in files)
    for file in files:
        ended = subprocess.run(["git", "check-ignore", "--quiet", str(DOCKER / file)], cwd=ROOT, check=False)
        assert ended.returncode == 0, file
