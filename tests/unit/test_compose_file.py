"""docker-compose.yml, the Dockerfile and .env.example: what they promise, and that they agree with the settings."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployment import FILE, OURS, ROOT, SERVICES, defaults, environment_of, filled_in, megabytes, seconds

from pipeline.settings import Settings, load_settings
from workers.embedded.stack import WORKER_GRACE

DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
TEXT = (ROOT / "docker-compose.yml").read_text("utf-8")
STAYING = [name for name, service in SERVICES.items() if service.get("restart") != "no"]
SECRETS = ("postgres_password", "redis_password", "qdrant_api_key", "flower_auth", "webhooks_secret", "openai_api_key")
# Keys of the Compose specification that the file uses; another one is a slip of the pen, or to be added here.
KNOWN = {
    *("image", "build", "user", "command", "entrypoint", "environment", "secrets", "init", "profiles"),
    *("volumes", "tmpfs", "shm_size", "ports", "stop_signal", "stop_grace_period", "restart", "logging"),
    *("cap_drop", "security_opt", "read_only", "depends_on", "healthcheck", "deploy"),
}
# A worker's main process, with /tmp in memory; measured at 150 to 200 MB without.
MAIN_MB = 512
WORKERS = 20  # that docs/deployment.md promises room for, in Postgres
OTHERS = 10  # connections for people, backups and applications


def limits(service: str) -> dict[str, Any]:
    found = SERVICES[service]["deploy"]["resources"]["limits"]
    return {name: filled_in(value, defaults()) for name, value in found.items()}


def settings_of(service: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings that a container of the service reads, with the secret's name as the value of each secret."""
    for name in SECRETS:
        (directory / name).write_text(f"user:{name}" if name == "flower_auth" else f"{name}\n")
    (directory / "webhooks_secret").write_text("whsec_" + "A" * 32)
    for name, value in environment_of(service).items():
        monkeypatch.setenv(name, value.replace("/run/secrets", str(directory)))
    return load_settings(home=directory)


def test_the_file_says_nothing_that_compose_does_not_know() -> None:
    assert {name for name in FILE if not name.startswith("x-")} == {"services", "secrets", "volumes"}
    for name, service in SERVICES.items():
        assert set(service) <= KNOWN, name
    mounted = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())}
    assert {volume for volume in mounted if not volume.startswith(".")} == set(FILE["volumes"])


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    user, group = service["user"].split(":")
    assert int(user) > 0
    assert int(group) > 0
    assert all("size=" in place for place in service.get("tmpfs", ())), "memory, so it is bounded"
    assert {"memory", "cpus"} <= set(limits(name))
    assert float(limits(name)["cpus"]) <= 2, "more than a small machine has is refused"
    assert ("healthcheck" in service) == (name in STAYING)
    assert service["logging"] == {"driver": "local"}
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    tag = service["image"].partition(":")[2]
    assert re.search(r"\d+\.\d+", tag), "pinned by version"


def test_no_secret_is_in_the_file_nor_in_anything_that_docker_inspect_shows() -> None:
    assert set(FILE["secrets"]) == set(SECRETS)
    for secret, source in FILE["secrets"].items():
        assert filled_in(source["file"], defaults()) == f"./secrets/{secret}"
    for name, service in SERVICES.items():
        given = service.get("secrets", [])
        assert len(given) == len(set(given)), name
        for variable, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|SECRET|KEY|AUTH", variable):
                assert variable.endswith("_FILE"), variable
                assert not value or value.removeprefix("/run/secrets/") in given, name
            assert not re.search(r"://[^/@]*:[^/@]+@", str(value)), f"{variable} has a password in it"
        for secret in re.findall(r"/run/secrets/(\w+)", str([service.get("command"), service.get("entrypoint")])):
            assert secret in given, name
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()
    assert "/secrets/" in (ROOT / ".gitignore").read_text().splitlines()


def test_every_variable_is_in_the_example_with_its_default() -> None:
    used = re.findall(r"\$\{(\w+)(?::-([^}]*))?\}", TEXT)
    assert dict(used) == defaults()
    assert ":?" not in TEXT, "it starts without an .env"


@pytest.mark.parametrize("service", OURS)
def test_the_environment_of_a_service_is_one_that_the_settings_take(
    service: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = settings_of(service, tmp_path, monkeypatch)
    assert settings.postgres.url.get_secret_value() == "postgresql://millrace:postgres_password@postgres:5432/millrace"
    assert settings.redis.url.get_secret_value() == "redis://:redis_password@redis:6379/0"
    assert settings.qdrant.url.get_secret_value() == "grpc://qdrant:6334"
    assert settings.qdrant.api_key.get_secret_value() == "qdrant_api_key"
    assert settings.webhooks.secret.get_secret_value().startswith("whsec_")
    assert (settings.metrics.address, settings.metrics.port) == ("0.0.0.0", 9464)
    assert settings.flower.auth.get_secret_value() == ("user:flower_auth" if service == "flower" else "")
    assert settings.flower.read_only


def test_our_services_wait_for_the_schema_and_the_servers() -> None:
    assert SERVICES["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    for service in set(OURS) - {"migrate"}:
        assert SERVICES[service]["depends_on"] == {
            "migrate": {"condition": "service_completed_successfully"},
            "redis": {"condition": "service_healthy"},
            "qdrant": {"condition": "service_healthy"},
        }


def test_every_service_has_time_to_stop_in_order() -> None:
    for service in STAYING:
        assert "stop_signal" in SERVICES[service], service
        assert seconds(SERVICES[service]["stop_grace_period"]) >= 20, service
    for service in ("worker", "express"):
        grace = seconds(SERVICES[service]["stop_grace_period"])
        assert grace > WORKER_GRACE, "as long as the embedded stack waits for the same"
        assert grace > load_settings().work.lease_seconds, "work that hangs is done elsewhere before it is killed"
        assert SERVICES[service]["init"] is True
        assert SERVICES[service]["stop_signal"] == "SIGTERM"


@pytest.mark.parametrize(("service", "children"), [("worker", 2), ("express", 1)])
def test_the_memory_of_a_worker_is_room_for_what_its_processes_may_have(
    service: str, children: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = settings_of(service, tmp_path, monkeypatch)
    if service == "worker":
        assert int(filled_in(SERVICES["worker"]["command"][-1], defaults())) == children
    child = settings.memory.hard_mb + settings.extraction.memory_mb
    assert str(child) in (ROOT / ".env.example").read_text(), "the example says what a child may have"
    needed = MAIN_MB + children * child
    assert needed <= megabytes(limits(service)["memory"]) <= needed * 1.1


def test_redis_is_full_before_its_container_is() -> None:
    script = SERVICES["redis"]["command"][-1]
    found = re.search(r"--maxmemory (\d+)mb", script)
    assert found is not None
    assert int(found[1]) * 2 <= megabytes(limits("redis")["memory"]), "a rewrite of the log copies what changes"
    assert "--maxmemory-policy noeviction" in script


def test_all_pools_together_fit_into_max_connections(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """docs/deployment.md has the same sum."""
    size = settings_of("worker", tmp_path, monkeypatch).postgres.pool_size
    children = int(filled_in(SERVICES["worker"]["command"][-1], defaults()))
    pools = WORKERS * (1 + children + 1)  # the main process, its children, and the health check
    pools += 1 + 1 + 1  # express, the same with one child
    pools += 1 + 1 + 1 + 1 + 2  # beat and its health check, Flower, migrate, and two command lines
    beside = WORKERS + 1  # of each worker one, for scrapes and for what asks for duties
    superuser = 3  # superuser_reserved_connections
    found = re.search(r"max_connections=(\d+)", " ".join(SERVICES["postgres"]["command"]))
    assert found is not None
    needed = pools * size + beside + superuser + OTHERS
    assert needed <= int(found[1])
    told = (ROOT / "docs" / "deployment.md").read_text("utf-8")
    assert f"{needed} of {found[1]}" in told


def test_prometheus_finds_every_worker_where_it_listens() -> None:
    service = SERVICES["prometheus"]
    assert service["profiles"] == ["monitoring"]
    place = next(volume for volume in service["volumes"] if volume.endswith(":ro")).split(":")[0]
    configuration = yaml.safe_load((ROOT / place / "prometheus.yml").read_text("utf-8"))
    (job,) = configuration["scrape_configs"]
    (found,) = job["dns_sd_configs"]
    assert set(found["names"]) == {name for name in OURS if SERVICES[name]["command"][0] == "worker"}
    for name in found["names"]:
        assert environment_of(name)["MILLRACE_METRICS__ADDRESS"] == "0.0.0.0"
        assert int(environment_of(name)["MILLRACE_METRICS__PORT"]) == found["port"]
    assert all((ROOT / place / rules).is_file() for rules in configuration["rule_files"])


def test_qdrant_gets_its_key_from_the_file_alone(tmp_path: Path) -> None:
    (tmp_path / "qdrant_api_key").write_text("the key\n")
    (tmp_path / "entrypoint.sh").write_text('#!/bin/sh\nprintf "%s" "$QDRANT__SERVICE__API_KEY"\n')
    (tmp_path / "entrypoint.sh").chmod(0o755)
    shell, options, script = SERVICES["qdrant"]["entrypoint"]
    script = filled_in(script, {}).replace("/run/secrets", str(tmp_path))
    told = subprocess.run([shell, options, script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert told.stdout == "the key"
    (tmp_path / "qdrant_api_key").unlink()
    ended = subprocess.run([shell, options, script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    assert ended.stdout == "", "without the secret it is not started open"


def test_the_image_runs_as_nobody_special_and_installs_from_the_lock() -> None:
    final = DOCKERFILE.split("FROM ")[-1]
    assert re.search(r"^USER millrace$", final, re.MULTILINE)
    assert {SERVICES[service]["user"] for service in OURS} == {"10001:10001"}
    assert "--uid 10001 " in final
    assert "--gid 10001 " in final
    assert re.search(r'^ENTRYPOINT \["millrace"\]$', final, re.MULTILINE)
    assert all(re.match(r"python:3\.\d+-slim", base) for base in re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE))
    assert "--no-deps --require-hashes -r requirements.lock" in DOCKERFILE
    copied = {word for line in re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()}
    kept = set(re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text("utf-8"), re.MULTILINE))
    assert copied == kept
    assert all((ROOT / name).exists() for name in copied)


def test_the_image_has_every_place_that_a_volume_of_ours_goes_to() -> None:
    """A new named volume is owned by whom its place in the image is owned by; without one, by root."""
    made = re.search(r"^RUN mkdir -m 700 ([\w ]+) &&", DOCKERFILE, re.MULTILINE)
    assert made is not None
    places = {volume.split(":")[1] for name in OURS for volume in SERVICES[name].get("volumes", ())}
    open_to_all = {"/var/tmp"}
    assert places - open_to_all == {f"/var/lib/millrace/{place}" for place in made[1].split()}


def test_what_the_image_runs_to_make_the_model_is_python() -> None:
    found = re.search(r'^\s+"(from pathlib .*)"$', DOCKERFILE, re.MULTILINE)
    assert found is not None
    compile(found[1], "Dockerfile", "exec")
    assert "pipeline.embedding.bundled import model_directory" in found[1]
