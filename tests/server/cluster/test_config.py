"""Options of a cluster, and the configurations that come along."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml

from trimtab.guidance.errors import DataError, UserError
from trimtab.server.cluster.config import ENGINE, INGRESS, ClusterConfig
from trimtab.server.commands.settings import settings_of

ROOT = Path(__file__).parents[3]


SERVE = yaml.safe_load((ROOT / "deploy/ray-serve.yaml").read_text())
SERVICE = yaml.safe_load((ROOT / "deploy/ray-service.yaml").read_text())
ON_KUBERNETES = yaml.safe_load(SERVICE["spec"]["serveConfigV2"])


@pytest.mark.parametrize("config", [SERVE, ON_KUBERNETES], ids=["serve", "kubernetes"])
def test_configurations_name_the_application_its_options_and_deployments(config: dict[str, Any]):
    (application,) = config["applications"]
    module, _, builder = application["import_path"].partition(":")
    file = ROOT / f"{module.removeprefix('trimtab.').replace('.', '/')}.py"
    functions = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)]
    assert builder in {function.name for function in functions}
    settings_of(ClusterConfig, application["args"], {})
    assert {deployment["name"] for deployment in application["deployments"]} <= {ENGINE, INGRESS}


@pytest.mark.parametrize("config", [SERVE, ON_KUBERNETES], ids=["serve", "kubernetes"])
def test_ray_accepts_the_configurations(config: dict[str, Any]):
    schema = pytest.importorskip("ray.serve.schema", reason="Ray Serve is an extra: pip install trimtab[ray]")
    schema.ServeDeploySchema.model_validate(config)


def test_pods_of_the_cluster_have_the_image_the_service_and_what_engines_ask_for():
    assert (SERVICE["apiVersion"], SERVICE["kind"]) == ("ray.io/v1", "RayService")
    cluster = SERVICE["spec"]["rayClusterConfig"]
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    containers = [pod["template"]["spec"]["containers"][0] for pod in pods]
    assert len({container["image"] for container in containers}) == 1
    (application,) = ON_KUBERNETES["applications"]
    (engine,) = (d for d in application["deployments"] if d["name"] == ENGINE)
    per_pod = containers[1]["resources"]["limits"]["nvidia.com/gpu"]
    assert engine["ray_actor_options"]["num_gpus"] == per_pod
    assert application["args"]["max_replicas"] <= cluster["workerGroupSpecs"][0]["maxReplicas"]


def test_options_are_typed_or_texts_and_a_file_counts_less(tmp_path: Path):
    file = tmp_path / "serve.yaml"
    file.write_text("model: somewhere\nmax_model_len: 100\nmax_num_seqs: 3\n")
    given = {"config": str(file), "max_model_len": "200", "max_replicas": 7, "heads": "a,b"}
    config = settings_of(ClusterConfig, given, {"TRIMTAB_MAX_NUM_SEQS": "5"})
    assert (config.engine.model, config.engine.max_model_len, config.engine.max_num_seqs) == (
        "somewhere",
        200,
        5,
    )
    assert (config.max_replicas, config.engine.heads) == (7, (Path("a"), Path("b")))


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"max_replica": 2}, "max_replicas"),
        ({"max_replicas": "many"}, "max_replicas"),
        ({"max_replicas": 0}, "min_replicas"),
        ({"min_replicas": 3, "max_replicas": 2}, "min_replicas"),
        ({"tls_certificate": "a", "tls_key": "b"}, "tls_certificate"),
        ({"heads_dir": "heads"}, "heads_dir"),
        ({"config": "/nowhere/at/all.yaml"}, "nowhere"),
    ],
)
def test_wrong_options_are_told_by_name(given: dict[str, object], problem: str):
    with pytest.raises((UserError, DataError), match=problem):
        settings_of(ClusterConfig, given, {})
