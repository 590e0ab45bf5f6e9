"""The files for clusters are valid for their readers, and agree with each other."""

import importlib.metadata
import inspect
import json
import os
import re
import runpy
import stat

import botocore.session
import dask.config
import dask.utils
import jsonschema
import pytest
import typer
import yaml
from botocore.validate import ParamValidator
from dask.config import interpret_value
from distributed.cli.dask_scheduler import main as dask_scheduler
from distributed.cli.dask_worker import main as dask_worker

from dseeds.cli import app
from tests.support.deployment import DEPLOY

TLS = {
    "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION",
    "DASK_DISTRIBUTED__COMM__DEFAULT_SCHEME",
    "DASK_DISTRIBUTED__COMM__TLS__CA_FILE",
    *(
        f"DASK_DISTRIBUTED__COMM__TLS__{role}__{file}"
        for role in ("SCHEDULER", "WORKER", "CLIENT")
        for file in ("CERT", "KEY")
    ),
}


def read(*parts):
    return DEPLOY.joinpath(*parts).read_text(encoding="utf-8")


def compose(name):
    return yaml.safe_load(read("compose", name))


def manifest(name):
    return yaml.safe_load(read("kubernetes", name))


def asked_of_worker(arguments):
    """Return the options of `dask worker`, parsed by its own command line."""
    given = dask_worker.make_context("worker", list(arguments), ignore_unknown_options=False)
    return given.params


def pods(name):
    """Return the pod specs of a cluster or a job, by role."""
    spec = manifest(name)["spec"]
    cluster = spec["cluster"]["spec"] if "cluster" in spec else spec
    result = {role: cluster[role]["spec"] for role in ("worker", "scheduler")}
    return result | ({"job": spec["job"]["spec"]} if "job" in spec else {})


def stages():
    """Return the Dockerfile's stages: names, base images, and instructions in order."""
    lines = re.sub(r"\\\n", " ", re.sub(r"(?m)^#.*\n", "", read("Dockerfile"))).splitlines()
    result = {}
    for word, _, rest in (line.partition(" ") for line in lines if line.strip()):
        if word == "FROM":
            origin, _, name = rest.partition(" AS ")
            result[name] = (origin, [])
        elif result:
            result[name][1].append((word, " ".join(rest.split())))
    return result


def test_the_images():
    result = stages()
    assert list(result) == ["build", "build-notebook", "common", "notebook", "dseeds"]
    for name in ("notebook", "dseeds"):
        origin, instructions = result[name]
        assert origin == "common"
        assert not [rest for word, rest in instructions if word in ("USER", "RUN")]
    origin, instructions = result["common"]
    # Packages come from another stage, without its compiler, and nothing runs as root.
    assert origin == result["build"][0] == "python:${PYTHON}-slim"
    assert not any("apt" in rest or "pip" in rest for word, rest in instructions if word == "RUN")
    assert [rest for word, rest in instructions if word == "USER"] == ["1000:1000"]
    version = next(rest for word, rest in instructions if word == "ARG" and rest.startswith("VERSION="))
    assert version == f"VERSION={importlib.metadata.version('dseeds')}"
    # Everything that is copied passes the context's filter.
    kept = {line[1:] for line in read("..", ".dockerignore").splitlines() if line.startswith("!")}
    copied = [rest.split()[:-1] for word, rest in result["build"][1] if word == "COPY"]
    assert {name for names in copied for name in names} == kept


def workers():
    service = compose("compose.yml")["services"]["worker"]
    memory = service["deploy"]["resources"]["limits"]["memory"]
    yield "compose.yml", service["command"], dask.utils.parse_bytes(memory.replace("M", "MiB"))
    for name in ("cluster.yaml", "job.yaml"):
        (container,) = pods(name)["worker"]["containers"]
        requested, most = (container["resources"][key] for key in ("requests", "limits"))
        assert requested == most
        yield name, container["args"], dask.utils.parse_bytes(most["memory"].replace("Mi", "MiB"))


def test_workers_have_a_thread_a_limit_below_their_containers_and_an_end():
    for name, arguments, memory in workers():
        asked = asked_of_worker(arguments)
        assert asked["nthreads"] == 1, name
        # The nanny needs about 200 MiB.
        assert 2**30 <= dask.utils.parse_bytes(asked["memory_limit"]) <= memory - 2**28, name
        lifetime, stagger = (dask.utils.parse_timedelta(asked[key]) for key in ("lifetime", "lifetime_stagger"))
        assert lifetime - stagger > 3600, name
        assert stagger >= 600, name
        assert asked["lifetime_restart"] is True, name
        assert asked["local_directory"] == "/tmp", name


def test_nothing_of_compose_is_reached_from_elsewhere():
    services = compose("compose.yml")["services"]
    ports = {name: service["ports"] for name, service in services.items() if "ports" in service}
    # Not Dask's own port, which runs arbitrary code for any client.
    assert ports == {
        "scheduler": ["127.0.0.1:8787:8787"],
        "jupyter": ["127.0.0.1:8888:8888"],
        "store": ["127.0.0.1:8333:8333"],
    }
    dask_scheduler.make_context("scheduler", list(services["scheduler"]["command"]))
    for name, service in services.items():
        tag = service["image"].partition(":")[2]
        assert service["image"].startswith("dseeds") or re.fullmatch(r"[\d.]+", tag), name


def test_compose_has_no_default_secrets():
    text = read("compose", "compose.yml")
    needed = set(re.findall(r"\$\{(\w+):\?", text))
    assert set(re.findall(r"\$\{?(\w+)", text)) == needed
    example = dict(line.split("=") for line in read("compose", "env.example").splitlines() if not line.startswith("#"))
    assert set(example) == needed
    assert {name for name, value in example.items() if not value} == {"S3_SECRET_KEY", "JUPYTER_TOKEN"}
    ignored = read("..", ".gitignore").splitlines()
    assert ".env" in ignored
    assert not list(DEPLOY.rglob("*.key")) + list(DEPLOY.rglob("*.crt"))


def test_tls_is_set_alike():
    overlay = compose("compose.tls.yml")["services"]
    settings = overlay.pop("certificates") and overlay.pop("scheduler")["environment"]
    assert set(settings) == TLS
    assert all(service["environment"] == settings for service in overlay.values())
    assert set(overlay) == {"worker", "dseeds", "jupyter"}
    assert manifest("tls.yaml")["data"] == settings


@pytest.fixture(scope="module")
def definitions():
    """Return the schemas of the operator's resources, by kind."""
    try:
        files = importlib.metadata.files("dask-kubernetes")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("dask-kubernetes, whose files say what its resources look like, is not installed")
    result = {}
    for path in files:
        if path.parent.name == "crds" and path.suffix == ".yaml":
            definition = yaml.load(
                path.locate().read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)
            )["spec"]
            (version,) = definition["versions"]
            assert (definition["group"], version["name"]) == ("kubernetes.dask.org", "v1")
            result[definition["names"]["kind"]] = strict(version["schema"]["openAPIV3Schema"])
    return result


def strict(schema):
    """Make a schema refuse unknown fields, which Kubernetes drops silently."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        changed.setdefault("additionalProperties", bool(schema.get("x-kubernetes-preserve-unknown-fields")))
    if schema.get("x-kubernetes-int-or-string"):
        changed["type"] = ["integer", "string"]
    return changed


def check(definitions, resource):
    assert resource["apiVersion"] == "kubernetes.dask.org/v1"
    rest = {key: value for key, value in resource.items() if key not in ("apiVersion", "kind", "metadata")}
    jsonschema.Draft7Validator(definitions[resource["kind"]]).validate(rest)


@pytest.mark.parametrize("name", ["cluster.yaml", "job.yaml", "autoscaler.yaml"])
def test_the_operator_knows_its_resources(definitions, name):
    check(definitions, manifest(name))


def test_a_slip_would_be_noticed(definitions):
    for path, value in (("replicas", "four"), ("replica", 4)):
        resource = manifest("cluster.yaml")
        resource["spec"]["worker"][path] = value
        with pytest.raises(jsonschema.ValidationError):
            check(definitions, resource)
    resource = manifest("job.yaml")
    resource["spec"]["job"]["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(jsonschema.ValidationError):
        check(definitions, resource)


@pytest.mark.parametrize("name", ["cluster.yaml", "job.yaml"])
def test_pods_find_each_other_and_have_no_rights(name):
    own = manifest(name)["metadata"]["name"]
    address = f"{own}-scheduler:8786"
    specs = pods(name)
    spec = manifest(name)["spec"]
    service = (spec["cluster"]["spec"] if "cluster" in spec else spec)["scheduler"]["service"]
    # The operator's name for the scheduler's pod, and the ports that it expects.
    assert service["selector"] == {"dask.org/cluster-name": own, "dask.org/component": "scheduler"}
    (scheduler,) = specs["scheduler"]["containers"]
    assert {p["name"]: p["containerPort"] for p in scheduler["ports"]} == {"tcp-comm": 8786, "http-dashboard": 8787}
    assert {p["targetPort"]: p["port"] for p in service["ports"]} == {"tcp-comm": 8786, "http-dashboard": 8787}
    # The operator probes by HTTP, with or without TLS.
    (routes,) = (e["value"] for e in scheduler["env"] if e["name"] == "DASK_DISTRIBUTED__SCHEDULER__HTTP__ROUTES")
    own_routes = dask.config.get("distributed.scheduler.http.routes")
    assert interpret_value(routes) == [*own_routes, "distributed.http.scheduler.api"]
    asked = asked_of_worker(specs["worker"]["containers"][0]["args"])
    assert (asked["scheduler"], asked["name"]) == (address, "$(DASK_WORKER_NAME)")
    for spec in specs.values():
        volumes = {volume["name"] for volume in spec["volumes"]}
        assert spec["securityContext"]["runAsNonRoot"] is True
        for container in spec["containers"] + spec.get("initContainers", []):
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["image"] == "registry.example.org/dseeds:" + importlib.metadata.version("dseeds")
            assert "memory" in container["resources"]["limits"]
    if "job" in specs:
        command, *arguments = specs["job"]["containers"][0]["args"]
        given = typer.main.get_command(app).commands[command].make_context(command, arguments).params
        assert given["scheduler"] == address
        assert given["resume"] is True


def test_the_network_policy_and_the_autoscaler_are_for_the_cluster():
    name = manifest("cluster.yaml")["metadata"]["name"]
    policy = manifest("network-policy.yaml")
    assert policy["spec"]["podSelector"]["matchLabels"] == {"dask.org/cluster-name": name}
    assert manifest("autoscaler.yaml")["spec"]["cluster"] == name


def test_aws_knows_the_job_definition():
    definition = json.loads(read("aws", "job.json"))
    session = botocore.session.get_session()
    shape = session.get_service_model("batch").operation_model("RegisterJobDefinition").input_shape
    report = ParamValidator().validate(definition, shape)
    assert not report.has_errors(), report.generate_report()
    # The validator leaves these checks to the service.
    assert definition["type"] in shape.members["type"].enum
    requested = {need["type"]: int(need["value"]) for need in definition["containerProperties"]["resourceRequirements"]}
    assert set(requested) <= set(
        shape.members["containerProperties"].members["resourceRequirements"].member.members["type"].enum
    )
    # In MiB, more than `dseeds init` allows a job by default.
    assert requested["MEMORY"] > 2048
    retry = definition["retryStrategy"]
    assert 1 <= retry["attempts"] <= 10
    assert len(retry["evaluateOnExit"]) <= 5
    assert {rule["action"] for rule in retry["evaluateOnExit"]} == {"RETRY", "EXIT"}
    assert definition["timeout"]["attemptDurationSeconds"] >= 3600


def test_batch_jobs_request_the_memory_of_a_region_and_may_be_retried():
    slurm = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", read("slurm", "job.sh"), re.MULTILINE))
    assert slurm["mem"] == "3G"
    assert (slurm["cpus-per-task"], slurm["time"]) == ("1", "1-00:00:00")
    assert "requeue" in slurm
    assert slurm["open-mode"] == "append"
    pbs = dict(re.findall(r"^#PBS -(\w) (.*)$", read("pbs", "step.sh"), re.MULTILINE))
    assert (pbs["r"], pbs["l"]) == ("y", "walltime=24:00:00")
    assert "ncpus=1:mem=3gb" in read("pbs", "step.sh")


def test_options_for_coiled_exist(monkeypatch):
    coiled = pytest.importorskip("coiled", reason="coiled is not installed: what it is asked for is not checked")
    assert coiled_options(monkeypatch).keys() <= inspect.signature(coiled.Cluster.__init__).parameters.keys()


def coiled_options(monkeypatch):
    """The options that the script passes to Coiled."""
    asked = {}

    class Asked(Exception):
        pass

    def cluster(**options):
        asked.update(options)
        raise Asked

    script = runpy.run_path(str(DEPLOY / "coiled" / "run.py"))
    monkeypatch.setitem(script["run"].__globals__, "Cluster", cluster)
    with pytest.raises(Asked):
        script["run"]("s3://lab/body.zarr", "s3://lab/labels.zarr", "16")
    return asked


def test_scripts_are_executable_and_others_are_not():
    for path in DEPLOY.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts and os.name == "posix":
            assert bool(path.stat().st_mode & stat.S_IXUSR) == (path.name == "submit.sh"), path
