"""The Kubernetes manifests, read as data."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tunnel.contract import BY_NAME, PREFIX, read_settings
from tunnel.daemon import node as daemon

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
DOCUMENTS: list[dict[str, Any]] = [
    document for path in sorted(FOLDER.glob("*.yaml")) for document in yaml.safe_load_all(path.read_text())
]
WORKLOADS = [document for document in DOCUMENTS if document["kind"] in {"Deployment", "Job"}]
CONFIG = next(document for document in DOCUMENTS if document["kind"] == "ConfigMap")["data"]


@pytest.fixture(params=WORKLOADS, ids=lambda document: document["metadata"]["name"])
def pod(request: pytest.FixtureRequest) -> dict[str, Any]:
    spec: dict[str, Any] = request.param["spec"]["template"]["spec"]
    return spec


def test_every_part_is_there() -> None:
    assert {document["metadata"]["name"] for document in WORKLOADS} == {
        "visiona-api",
        "visiona-migrate",
        "visiona-tunnel",
        "visiona-worker",
    }


def test_services_inject_no_variables(pod: dict[str, Any]) -> None:
    """A Service called visiona-api would inject VISIONA_API_PORT=tcp://…, which is no port."""
    assert pod["enableServiceLinks"] is False


def test_pods_are_restricted(pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]


def test_mounts_have_volumes(pod: dict[str, Any]) -> None:
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in pod["containers"]:
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_the_daemons_pods_outlive_their_drain() -> None:
    (tunnel,) = [document for document in WORKLOADS if document["metadata"]["name"] == "visiona-tunnel"]
    grace = tunnel["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    beside = daemon._GOODBYE_SECONDS + daemon._CLOSE_SECONDS + daemon._FLUSH_SECONDS
    lameduck = float(CONFIG["VISIONA_LAMEDUCK_SECONDS"])
    assert grace > lameduck + float(BY_NAME["TUNNEL_DRAIN_SECONDS"].default) + beside


def test_the_apis_pods_outlive_their_grace() -> None:
    (api,) = [document for document in WORKLOADS if document["metadata"]["name"] == "visiona-api"]
    spec = api["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] > float(CONFIG["VISIONA_LAMEDUCK_SECONDS"]) + 30
    assert "lifecycle" not in spec["containers"][0], "the lame-duck time is the wait, and says that it is none"


def test_the_settings_are_complete_but_for_the_secrets() -> None:
    assert {name.removeprefix(PREFIX) for name in CONFIG} <= set(BY_NAME)
    secrets = {"SECRET_KEY", "INTERNAL_SECRET", "STORAGE_SIGNING_SECRET"}
    environ = CONFIG | {PREFIX + name: name + "x" * 32 for name in secrets}
    environ |= {"VISIONA_DB_PASSWORD": "pw", "VISIONA_REDIS_URL": "rediss://:pw@cache.example.internal:6379/0"}
    settings, warnings = read_settings(environ, "api")
    assert warnings == []
    assert settings["ENV"] == "production"


def test_the_internal_port_is_reached_from_inside_alone() -> None:
    for document in DOCUMENTS:
        if document["kind"] == "Service":
            assert document["spec"].get("type", "ClusterIP") == "ClusterIP"
    (policy,) = [document for document in DOCUMENTS if document["kind"] == "NetworkPolicy"]
    rules = {rule["ports"][0]["port"]: rule.get("from") for rule in policy["spec"]["ingress"]}
    assert rules[3800] is None
    assert [peer["podSelector"]["matchLabels"]["app"] for peer in rules[3801]] == ["visiona-api", "visiona-worker"]


def test_kustomize_lists_every_file() -> None:
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    assert set(kustomization["resources"]) == {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}


def test_every_pod_that_touches_models_reaches_the_same_bytes() -> None:
    """API and worker both read and write them: a volume of one pod's own would be a folder that the other misses."""
    assert CONFIG["VISIONA_S3_BUCKET"]
    for document in WORKLOADS:
        for volume in document["spec"]["template"]["spec"]["volumes"]:
            assert volume["name"] == "tmp" or "emptyDir" not in volume
