"""The Kubernetes manifests as kubectl renders them. There is no cluster here: what is checked is that they agree with
themselves, with the service, and with docker-compose.yml."""

from __future__ import annotations

import functools
import re
import shutil
import stat
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from api.routes import health
from deploy.kubernetes import make_secrets
from service.settings import Settings

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "deploy/kubernetes"
GUIDE = ROOT / "docs/kubernetes.md"
BASE, ALL_IN_ONE, GPU = "base", "overlays/all-in-one", "overlays/gpu"
FOLDERS = (BASE, ALL_IN_ONE, GPU)
TRAINS = ("ray-head", "ray-worker")
HEAD_PORT = 6379  # Ray's default; the operator names no other unless rayStartParams do

# Where a role's environment is another than in docker-compose.yml: names that are not there, or have another value there.
NOT_IN_COMPOSE = {
    "mlflow": {"MLFLOW_BACKEND_STORE_URI", "MLFLOW_ARTIFACTS_DESTINATION"},  # arguments there
    "postgres": {"PGDATA"},  # a volume of a cluster may hold lost+found
}
OTHER_VALUES = {"CHAINRULE_RAY_ADDRESS"}  # the operator names the head's Service
OWN_STORE = {"AWS_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL"}  # not in base: it may be AWS
OWN_CLUSTER = {"--head", "--block", "--port=6379", "--address=ray-head:6379"}  # of `ray start`: the operator's

# KubeRay CRD API reference, ray.io/v1: what we use of it, the same in v1.3 and v1.7.
RAY_CLUSTER_FIELDS = {"rayVersion", "enableInTreeAutoscaling", "headGroupSpec", "workerGroupSpecs"}
HEAD_FIELDS = {"serviceType", "rayStartParams", "template"}
WORKER_FIELDS = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}

Document = dict[str, Any]


class Pod(NamedTuple):
    owner: str
    labels: Mapping[str, str]
    spec: Document
    claims: frozenset[str]  # volumes that a StatefulSet makes

    @property
    def component(self) -> str:
        return self.labels["app.kubernetes.io/component"]

    @property
    def container(self) -> Document:
        (container,) = self.spec["containers"]
        assert isinstance(container, dict)
        return container


@functools.cache
def render(folder: Path) -> tuple[Document, ...]:
    run = kubectl("kustomize", str(folder))
    return tuple(document for document in yaml.safe_load_all(run) if document)


def kubectl(*arguments: str) -> str:
    return subprocess.run(["kubectl", *arguments], capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.fixture(params=FOLDERS)
def documents(request: pytest.FixtureRequest) -> tuple[Document, ...]:
    return render(MANIFESTS / request.param)


def of_kind(documents: tuple[Document, ...], *kinds: str) -> Iterator[Document]:
    found = [document for document in documents if document["kind"] in kinds]
    assert found, f"no {' or '.join(kinds)}"
    return iter(found)


def named(documents: tuple[Document, ...], kind: str, name: str) -> Document:
    (document,) = (d for d in of_kind(documents, kind) if d["metadata"]["name"] == name)
    return document


def pods(documents: tuple[Document, ...]) -> Iterator[Pod]:
    for document in of_kind(documents, "Deployment", "StatefulSet", "Job", "RayCluster"):
        spec = document["spec"]
        groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]] if document["kind"] == "RayCluster" else [spec]
        claims = frozenset(claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", ()))
        for group in groups:
            template = group["template"]
            yield Pod(
                f"{document['kind']} {document['metadata']['name']}",
                template["metadata"]["labels"], template["spec"], claims,
            )  # fmt: skip


def pod(documents: tuple[Document, ...], component: str) -> Pod:
    (found,) = (pod for pod in pods(documents) if pod.component == component)
    return found


def compose() -> Mapping[str, Document]:
    services: dict[str, Document] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    return services


def secret_values() -> Mapping[str, str]:
    """What the documented command puts into the Secret."""
    return dict(line.split("=", 1) for line in make_secrets.complete("").splitlines())


def environment(documents: tuple[Document, ...], container: Document) -> Mapping[str, str]:
    """As the container would see it. Fails where a key that is referred to does not exist."""
    maps = {d["metadata"]["name"]: d["data"] for d in of_kind(documents, "ConfigMap")}
    values: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        values |= maps[source["configMapRef"]["name"]]
    for variable in container.get("env", ()):
        name, source = variable["name"], variable.get("valueFrom", {})
        assert (not source) == ("value" in variable), f"{name} has a value or a source"
        if "value" in variable:
            assert isinstance(variable["value"], str), f"{name}: {variable['value']!r} is no string"
            values[name] = variable["value"]
        elif "secretKeyRef" in source:
            assert source["secretKeyRef"]["name"] == "chainrule"
            values[name] = secret_values()[source["secretKeyRef"]["key"]]
        else:
            reference = source["configMapKeyRef"]
            data = maps[reference["name"]]
            if reference["key"] in data or not reference.get("optional"):
                values[name] = data[reference["key"]]
    return values


def selects(selector: Document, labels: Mapping[str, str]) -> bool:
    expressions = selector.get("matchExpressions", ())
    assert all(e["operator"] == "In" for e in expressions), "the only operator that this test knows"
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(e["key"]) in e["values"] for e in expressions
    )


def test_everything_is_in_the_namespace_once(documents: tuple[Document, ...]) -> None:
    names = [(d["kind"], d["metadata"]["name"]) for d in documents]
    assert len(names) == len(set(names))
    assert ("Namespace", "chainrule") in names
    assert {d["metadata"]["namespace"] for d in documents if d["kind"] != "Namespace"} == {"chainrule"}
    assert {p.component for p in pods(documents)} >= {"api", "scheduler", "mlflow", "ray-head", "ray-worker"}


def test_the_images_are_those_of_the_compose_file(documents: tuple[Document, ...]) -> None:
    targets = re.findall(r"^FROM \S+ AS (\S+)", (ROOT / "deploy/Dockerfile").read_text(), re.MULTILINE)
    known = {service["image"] for service in compose().values()}
    assert known & {f"chainrule-{target}" for target in targets} == {"chainrule-control", "chainrule-ray"}
    for each in pods(documents):
        image = each.container["image"]
        assert image == compose()[each.component]["image"], each.owner
        assert image in known


@pytest.mark.parametrize("component", ["api", "scheduler"])
def test_the_settings_are_settings(
    documents: tuple[Document, ...], component: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = environment(documents, pod(documents, component).container)
    ours = {key for key in values if key.startswith("CHAINRULE_")}
    assert ours >= {"CHAINRULE_DATABASE_URL", "CHAINRULE_STORAGE"}
    assert {key.removeprefix("CHAINRULE_").lower() for key in ours} <= set(Settings.model_fields)
    for key, value in values.items():
        monkeypatch.setenv(key, value)
    settings = Settings()
    empty = [key for key in ours if not getattr(settings, key.removeprefix("CHAINRULE_").lower())]
    assert empty == ["CHAINRULE_ALLOW_CODE"], "code of users runs only where somebody has said so"
    monkeypatch.setenv("CHAINRULE_ALLOW_CODE", "true")
    assert Settings().code_allowed
    assert settings.mlflow_url == address(documents, "mlflow")
    if component == "api":
        assert not settings.on_loopback
        assert settings.data_roots
    else:
        cluster = next(of_kind(documents, "RayCluster"))["metadata"]["name"]
        assert settings.ray_address == f"{cluster}-head-svc:{HEAD_PORT}"
        assert settings.ray_join


def address(documents: tuple[Document, ...], service: str) -> str:
    (port,) = named(documents, "Service", service)["spec"]["ports"]
    return f"http://{service}:{port['port']}"


def test_only_settings_begin_like_settings(documents: tuple[Document, ...]) -> None:
    """Also in pods that read none; and no service link makes one of a Service's name."""
    for each in pods(documents):
        names = environment(documents, each.container)
        unknown = {n for n in names if n.startswith("CHAINRULE_")} - {
            f"CHAINRULE_{f.upper()}" for f in Settings.model_fields
        }
        assert not unknown, each.owner
        assert each.spec["enableServiceLinks"] is False, each.owner


def test_no_secret_is_written_down(documents: tuple[Document, ...]) -> None:
    assert not [d for d in documents if d["kind"] == "Secret"]
    for each in pods(documents):
        for variable in each.container.get("env", ()):
            if re.search("PASSWORD|TOKEN|KEY|SECRET|DATABASE_URL|STORE_URI", variable["name"]):
                assert "secretKeyRef" in variable["valueFrom"], f"{each.owner}: {variable['name']}"


def test_every_volume_is_there(documents: tuple[Document, ...]) -> None:
    claims = {d["metadata"]["name"]: d["spec"] for d in of_kind(documents, "PersistentVolumeClaim")}
    maps = {d["metadata"]["name"] for d in of_kind(documents, "ConfigMap")}
    mounted_by: dict[str, list[str]] = {}
    for each in pods(documents):
        volumes = {v["name"]: v for v in each.spec.get("volumes", ())}
        mounts = each.container.get("volumeMounts", ())
        assert {m["name"] for m in mounts} == set(volumes) | each.claims, each.owner
        for volume in volumes.values():
            if "persistentVolumeClaim" in volume:
                mounted_by.setdefault(volume["persistentVolumeClaim"]["claimName"], []).append(each.component)
            assert volume.get("configMap", {}).get("name", "chainrule") in maps
    assert set(mounted_by) == set(claims)
    assert mounted_by["home"] == ["api"], "it has people's keys"
    for name, users in mounted_by.items():
        assert claims[name]["accessModes"] == (["ReadWriteMany"] if len(users) > 1 else ["ReadWriteOnce"]), name


def test_a_volume_for_one_node_is_mounted_by_one_pod(documents: tuple[Document, ...]) -> None:
    api = named(documents, "Deployment", "api")["spec"]
    assert (api["replicas"], api["strategy"]["type"]) == (1, "Recreate")


def test_selectors_find_their_pods(documents: tuple[Document, ...]) -> None:
    labels = [p.labels for p in pods(documents)]
    for document in of_kind(documents, "Deployment", "StatefulSet"):
        assert selects(document["spec"]["selector"], document["spec"]["template"]["metadata"]["labels"])
    for document in of_kind(documents, "Deployment", "StatefulSet", "PodDisruptionBudget"):
        assert sum(selects(document["spec"]["selector"], each) for each in labels) == 1, document["metadata"]["name"]
    for document in of_kind(documents, "NetworkPolicy"):
        rules = [*document["spec"].get("ingress", ()), *document["spec"].get("egress", ())]
        peers = [
            peer["podSelector"]
            for rule in rules
            for peer in rule.get("from", rule.get("to", ()))
            if "ipBlock" not in peer
        ]
        for selector in (document["spec"]["podSelector"], *peers):
            assert any(selects(selector, each) for each in labels), document["metadata"]["name"]
    for document in of_kind(documents, "Service"):
        (component,) = [
            p.component for p in pods(documents) if selects({"matchLabels": document["spec"]["selector"]}, p.labels)
        ]
        assert component == document["metadata"]["name"]


def test_ports_are_open_where_they_are_asked_for(documents: tuple[Document, ...]) -> None:
    for document in of_kind(documents, "Service"):
        ports = {p["name"]: p["containerPort"] for p in pod(documents, document["metadata"]["name"]).container["ports"]}
        for port in document["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"], document["metadata"]["name"]
    for each in pods(documents):
        names = {port["name"] for port in each.container.get("ports", ())}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            handler = each.container.get(probe, {})
            asked = handler.get("httpGet", handler.get("tcpSocket"))
            assert asked is None or asked["port"] in names, each.owner
    for policy in of_kind(documents, "NetworkPolicy"):
        chosen = [p for p in pods(documents) if selects(policy["spec"]["podSelector"], p.labels)]
        allowed = {p["port"] for rule in policy["spec"].get("ingress", ()) for p in rule.get("ports", ())}
        assert all(allowed <= {p["containerPort"] for p in each.container.get("ports", ())} for each in chosen)


def test_the_api_is_asked_whether_it_lives_not_whether_jobs_can_run(documents: tuple[Document, ...]) -> None:
    """With /readyz, nobody could look at jobs while there is no scheduler."""
    container = pod(documents, "api").container
    paths = {container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "readiness", "liveness")}
    assert paths == {"/healthz"}
    assert "/healthz" in {getattr(route, "path", None) for route in health.router.routes}


def test_nobody_is_root_or_could_become_it(documents: tuple[Document, ...]) -> None:
    """What the namespace's own standard asks for, so that no pod is refused; and no key to the cluster's API."""
    namespace = named(documents, "Namespace", "chainrule")["metadata"]["labels"]
    assert namespace["pod-security.kubernetes.io/enforce"] == "restricted"
    for each in pods(documents):
        context, own = each.spec["securityContext"], each.container["securityContext"]
        assert context["runAsNonRoot"] is True, each.owner
        assert context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert own == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}, each.owner
        assert each.spec["automountServiceAccountToken"] is False, each.owner
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(each.spec)
        assert {"memory"} <= set(each.container["resources"]["limits"]), each.owner


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_environment_is_that_of_the_compose_file(folder: str) -> None:
    documents = render(MANIFESTS / folder)
    for each in pods(documents):
        theirs = {key: str(value) for key, value in compose()[each.component].get("environment", {}).items()}
        ours = environment(documents, each.container)
        missing = set() if folder == ALL_IN_ONE else OWN_STORE & set(theirs)
        extra = NOT_IN_COMPOSE.get(each.component, set())
        if (folder, each.component) == (GPU, "ray-worker"):
            extra = {"NVIDIA_DRIVER_CAPABILITIES"}
        assert set(ours) == set(theirs) - missing | extra, each.owner
        fixed = {key for key in set(ours) & set(theirs) - OTHER_VALUES if "${" not in theirs[key]}
        assert {key: ours[key] for key in fixed} == {key: theirs[key] for key in fixed}, each.owner


def test_commands_and_mounts_are_those_of_the_compose_file(documents: tuple[Document, ...]) -> None:
    for each in pods(documents):
        service, container = compose()[each.component], each.container
        mounts = {(m["mountPath"], m.get("readOnly", False)) for m in container.get("volumeMounts", ())}
        theirs = {mount(volume) for volume in service.get("volumes", ())}
        assert mounts - {("/dev/shm", False)} == theirs, each.owner
        assert (("/dev/shm", False) in mounts) == ("shm_size" in service), each.owner
        if each.component in TRAINS:  # the operator's (test_ray_is_started_as_by_the_compose_file)
            assert not {"command", "args"} & set(container)
        elif each.component == "mlflow":
            addresses = ("--backend-store-uri=", "--artifacts-destination=")  # with a password, so in the environment
            assert container["command"] == [a for a in service["command"] if not a.startswith(addresses)]
            (destination,) = (a.split("=", 1)[1] for a in service["command"] if a.startswith(addresses[1]))
            assert environment(documents, container)["MLFLOW_ARTIFACTS_DESTINATION"] == destination
        else:
            assert container.get("command", container.get("args")) == service.get("command"), each.owner


def mount(volume: str) -> tuple[str, bool]:
    path = volume.removesuffix(":ro")
    return path.rpartition(":")[2], path != volume


def test_ray_is_started_as_by_the_compose_file(documents: tuple[Document, ...]) -> None:
    cluster = next(of_kind(documents, "RayCluster"))["spec"]
    (workers,) = cluster["workerGroupSpecs"]
    for service, group in (("ray-head", cluster["headGroupSpec"]), ("ray-worker", workers)):
        arguments = [a for a in compose()[service]["command"][2:] if a not in OWN_CLUSTER]
        parts = (argument.removeprefix("--").partition("=") for argument in arguments)
        assert group["rayStartParams"] == {key: value or "true" for key, _, value in parts}


def test_the_ray_cluster_has_fields_that_the_operator_knows(documents: tuple[Document, ...]) -> None:
    cluster = next(of_kind(documents, "RayCluster"))
    assert cluster["apiVersion"] == "ray.io/v1"
    spec = cluster["spec"]
    (workers,) = spec["workerGroupSpecs"]
    assert set(spec) == RAY_CLUSTER_FIELDS
    assert set(spec["headGroupSpec"]) == HEAD_FIELDS
    assert set(workers) == WORKER_FIELDS
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    for group in (spec["headGroupSpec"], workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        container = group["template"]["spec"]["containers"][0]
        assert {"readinessProbe", "livenessProbe"} <= set(container), (
            "the operator's would ask the dashboard, with wget"
        )
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"ray[default]=={spec['rayVersion']}" in dependencies


def reaches(documents: tuple[Document, ...], source: str, target: str, port: int) -> bool:
    """Whether the policies let a pod of ``source`` open a connection to one of ``target``."""
    return passes(documents, source, target, port, "Egress") and passes(documents, target, source, port, "Ingress")


def passes(documents: tuple[Document, ...], subject: str, other: str, port: int, direction: str) -> bool:
    labels, others = pod(documents, subject).labels, pod(documents, other).labels
    rules, peers = ("ingress", "from") if direction == "Ingress" else ("egress", "to")
    specs = [policy["spec"] for policy in of_kind(documents, "NetworkPolicy")]
    specs = [s for s in specs if direction in s["policyTypes"] and selects(s["podSelector"], labels)]
    return not specs or any(
        port in [p["port"] for p in rule.get("ports", ())] + [port] * ("ports" not in rule)
        and (peers not in rule or any("ipBlock" in p or selects(p["podSelector"], others) for p in rule[peers]))
        for spec in specs
        for rule in spec.get(rules, ())
    )


def test_what_trains_reaches_neither_the_api_nor_the_database() -> None:
    documents = render(MANIFESTS / ALL_IN_ONE)
    components = {p.component for p in pods(documents)}
    ray = {*TRAINS, "scheduler"}
    allowed = {
        ("api", 8400): components - set(TRAINS),
        ("postgres", 5432): {"api", "scheduler", "mlflow"},
        ("mlflow", 5000): {"api", *ray},
        ("s3", 7070): {"api", "mlflow", "buckets", *ray},
        ("ray-head", HEAD_PORT): ray,
        ("ray-worker", 40000): ray,
        ("scheduler", 40000): ray,
    }
    for (target, port), expected in allowed.items():
        found = {source for source in components if reaches(documents, source, target, port)}
        assert found - {target} == expected - {target}, target
    assert not any(passes(documents, "postgres", node, 5432, "Ingress") for node in TRAINS), "its own door is shut too"
    assert all(passes(documents, node, "api", 53, "Egress") for node in TRAINS), "names are looked up"
    assert not any(passes(documents, node, "api", 443, "Egress") for node in TRAINS)
    outside = render(MANIFESTS / BASE)
    assert all(passes(outside, node, "api", 443, "Egress") for node in TRAINS), "the object store may be anywhere"
    assert not any(reaches(outside, node, "api", 8400) for node in TRAINS)


def test_every_node_of_the_gpu_overlay_has_one() -> None:
    for folder, gpus in ((BASE, None), (GPU, "1")):
        documents = render(MANIFESTS / folder)
        assert pod(documents, "ray-worker").container["resources"]["limits"].get("nvidia.com/gpu") == gpus
        assert "nvidia.com/gpu" not in pod(documents, "ray-head").container["resources"]["limits"]
    (toleration,) = pod(render(MANIFESTS / GPU), "ray-worker").spec["tolerations"]
    assert toleration == {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


def test_the_databases_are_those_of_the_compose_file() -> None:
    data = named(render(MANIFESTS / ALL_IN_ONE), "ConfigMap", "postgres-databases")["data"]
    assert data == {file.name: file.read_text() for file in (ROOT / "deploy/postgres").iterdir()}


def test_the_overlay_of_the_guide_does_what_it_says(tmp_path: Path) -> None:
    """Images are replaced also in the RayCluster, which kustomize does not know."""
    shutil.copytree(MANIFESTS, tmp_path / "kubernetes")
    files = re.findall(r"```yaml\n# (overlays/mine/\S+)\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert [name for name, _ in files] == ["overlays/mine/kustomization.yaml", "overlays/mine/storage.yaml"]
    (tmp_path / "kubernetes/overlays/mine").mkdir()
    shutil.copy(MANIFESTS / GPU / "workers.yaml", tmp_path / "kubernetes/overlays/mine")
    for name, text in files:
        (tmp_path / "kubernetes" / name).write_text(text)
    documents = render(tmp_path / "kubernetes/overlays/mine")
    for each in pods(documents):
        image = each.container["image"]
        own = compose()[each.component]["image"].startswith("chainrule-")
        assert bool(re.fullmatch(r"registry\.example\.org/chainrule-(control|ray):\S+", image)) == own, each.owner
    classes = {
        d["metadata"]["name"]: d["spec"].get("storageClassName") for d in of_kind(documents, "PersistentVolumeClaim")
    }
    assert classes == {"storage": "shared", "data": "shared", "home": None}
    assert pod(documents, "ray-worker").container["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_the_secret_has_each_key_that_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "secrets.env"
    make_secrets.main(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    first = file.read_text()
    make_secrets.main(file)
    assert file.read_text() == first, "a second call changes nothing"
    arguments = ["generic", "chainrule", f"--from-env-file={file}", "--dry-run=client", "--output=yaml"]
    secret = yaml.safe_load(kubectl("create", "secret", *arguments))
    asked = {
        variable["valueFrom"]["secretKeyRef"]["key"]
        for each in pods(render(MANIFESTS / ALL_IN_ONE))
        for variable in each.container["env"]
        if "secretKeyRef" in variable.get("valueFrom", {})
    }
    assert set(secret["data"]) == asked
    assert asked == set(re.findall(r"^\| `([A-Z0-9_]+)` \|", GUIDE.read_text(), re.MULTILINE)), "the guide's table"


def test_what_is_in_the_secrets_file_stays() -> None:
    given = "CHAINRULE_DATABASE_URL=postgresql+psycopg://me@elsewhere/jobs\nS3_ACCESS_KEY=mine"
    values = dict(line.split("=", 1) for line in make_secrets.complete(given).splitlines())
    assert values["CHAINRULE_DATABASE_URL"].endswith("@elsewhere/jobs")
    assert values["S3_ACCESS_KEY"] == "mine"
    assert values["MLFLOW_DATABASE_URL"].endswith(f":{values['POSTGRES_PASSWORD']}@postgres:5432/mlflow")
    assert len(set(values.values())) == len(values)
