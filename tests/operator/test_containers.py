"""The container files: valid, pinned, and in agreement with the server's own settings."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from nereid import BINARY, ROOT, Nereid
from ruamel.yaml import YAML

TOOLS = Path(sys.executable).parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = YAML(typ="safe").load(ROOT / "docker-compose.yml")
GPU = YAML(typ="safe").load(ROOT / "docker-compose.gpu.yml")
PINNED = re.compile(r"^[\w./-]+:v?\d+\.\d+\.\d+$")


def seconds(text):
    """A duration such as 40s."""
    return int(re.fullmatch(r"(\d+)s", text)[1])


def default_of(flag):
    """The default that `nereid serve --help` tells."""
    told = subprocess.run([BINARY, "serve", "--help"], capture_output=True, text=True, check=True).stdout
    return int(re.search(rf"--{flag} <N>.*?\[default: (\d+)\]", told, re.S)[1])


def health(*arguments, **environment):
    """The exit status of the health check's command, and what it prints."""
    command = [BINARY, "health", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=30, env={**os.environ, **environment})
    return ran.returncode, ran.stdout + ran.stderr


def test_hadolint_finds_nothing_in_the_dockerfile():
    ran = subprocess.run([TOOLS / "hadolint", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "")


@pytest.mark.parametrize("file", ["docker-compose.yml", "docker-compose.gpu.yml"])
def test_compose_files_have_the_form_of_the_specification(file):
    command = [TOOLS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", ROOT / file]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout


def test_what_the_image_copies_is_in_the_build_context():
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [words.split() for words in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.M)]
    sources = [source for words in copied for source in words[:-1]]
    assert len(sources) > 10
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(source == each or source.startswith(f"{each}/") for each in allowed), source


def test_the_image_runs_as_nobody_in_particular_and_is_asked_for_its_health():
    assert re.search(r"^USER (?!0\b|root)\d+:\d+$", DOCKERFILE, re.M)
    assert re.search(r'^HEALTHCHECK .* CMD \["nereid", "health", "--live"\]$', DOCKERFILE, re.M)
    assert "STOPSIGNAL SIGTERM" in DOCKERFILE


def test_the_image_has_what_object_stores_need():
    server = DOCKERFILE.split(" AS server\n")[1].split("\nFROM ")[0]
    assert re.search(r"^COPY --from=build \S+/ca-certificates.crt /etc/ssl/certs/$", server, re.M)
    user = re.search(r"^USER (\d+:\d+)$", server, re.M)[1]
    # What is fetched lies below it if nobody says otherwise.
    cache = re.search(r"XDG_CACHE_HOME=(\S+)", server)[1] + "/nereid"
    assert re.search(rf"mkdir (\S+ )*{cache} ", server)
    assert f"chown {user} {cache}\n" in server
    mounted = [volume.split(":")[1] for volume in COMPOSE["services"]["server"]["volumes"]]
    assert cache in mounted, "its root is read-only"


def test_the_image_names_the_default_ports():
    exposed = re.search(r"^EXPOSE (.*)$", DOCKERFILE, re.M)[1]
    assert [int(port) for port in exposed.split()] == [default_of(f"{name}-port") for name in ("http", "grpc", "metrics")]


def test_every_image_that_is_not_built_here_has_an_exact_version():
    foreign = [service["image"] for service in COMPOSE["services"].values() if "build" not in service]
    assert foreign
    for image in foreign:
        assert PINNED.match(image), image


def test_the_stop_may_take_longer_than_the_drain():
    server = COMPOSE["services"]["server"]
    (drain,) = (int(each.split("=")[1]) for each in server["command"] if each.startswith("--exit-timeout-secs="))
    assert seconds(server["stop_grace_period"]) > drain == default_of("exit-timeout-secs")


def test_nothing_is_opened_to_other_machines():
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert len(ports) >= 5
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_prometheus_scrapes_the_metrics_port_of_the_server():
    scraped = YAML(typ="safe").load(ROOT / "deploy" / "prometheus.yml")["scrape_configs"][0]["static_configs"][0]["targets"]
    assert scraped == [f"server:{default_of('metrics-port')}"]


def test_what_compose_mounts_is_there():
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (ROOT / source).exists(), source


def test_the_gpu_override_changes_a_service_that_exists():
    (name, change), = GPU["services"].items()
    assert name in COMPOSE["services"]
    (device,) = change["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert change["build"]["args"]["VARIANT"] == "cuda"


def test_health_of_a_server_is_known_by_either_port(repository):
    with Nereid(repository, "--model-control-mode=explicit", "--load-model=echo") as running:
        ports = {"NEREID_GRPC_PORT": running.grpc.rsplit(":", 1)[1], "NEREID_HTTP_PORT": running.http.rsplit(":", 1)[1]}
        assert health(**ports)[0] == 0
        assert health(**ports, NEREID_ALLOW_GRPC="false") == (0, f"{running.http} is ready\n")
    status, said = health(**ports)
    assert status == 1 and "nobody answers" in said
    status, said = health(**ports, NEREID_ALLOW_GRPC="false")
    assert status == 1 and "nobody answers" in said


def test_health_is_asked_at_the_server_s_own_address(repository, tmp_path):
    with Nereid(repository, "--model-control-mode=explicit", "--load-model=echo", "--grpc-address=127.0.0.2") as running:
        port = running.grpc.rsplit(":", 1)[1]
        assert health(NEREID_GRPC_ADDRESS="127.0.0.2", NEREID_GRPC_PORT=port) == (0, f"127.0.0.2:{port} is ready\n")
        settings = tmp_path / "nereid.toml"
        settings.write_text(f'grpc-address = "127.0.0.2"\ngrpc-port = {port}\n')
        assert health(NEREID_CONFIG=str(settings), NEREID_GRPC_PORT="tcp://10.0.0.11:8001")[0] == 0


def test_a_server_that_is_not_ready_is_not_healthy(server):
    """One of its models is broken."""
    assert health(NEREID_GRPC_PORT=server.grpc.rsplit(":", 1)[1])[0] == 1
    status, said = health(NEREID_HTTP_PORT=server.http.rsplit(":", 1)[1], NEREID_ALLOW_GRPC="false")
    assert status == 1 and "is not ready" in said


def test_a_server_that_is_not_ready_is_alive(server):
    """Whoever restarts it because of a broken model would do so for ever."""
    for name, address in [("NEREID_GRPC", server.grpc), ("NEREID_HTTP", server.http)]:
        off = {"NEREID_ALLOW_GRPC": "false"} if name == "NEREID_HTTP" else {}
        told = (0, f"{address} is live\n")
        assert health("--live", **{f"{name}_PORT": address.rsplit(":", 1)[1]}, **off) == told
    status, said = health("--live", NEREID_GRPC_PORT="1")
    assert status == 1 and "nobody answers" in said


def test_a_server_that_tells_its_readiness_to_few_is_alive(repository):
    secret = ["--grpc-restricted-protocol=health:key=secret", "--http-restricted-api=health:key=secret"]
    with Nereid(repository, "--model-control-mode=explicit", "--load-model=echo", *secret) as running:
        for name, address in [("NEREID_GRPC", running.grpc), ("NEREID_HTTP", running.http)]:
            where = {f"{name}_PORT": address.rsplit(":", 1)[1]}
            if name == "NEREID_HTTP":
                where["NEREID_ALLOW_GRPC"] = "false"
            assert health(**where)[0] == 1
            assert health("--live", **where) == (0, f"{address} is live\n")


def test_what_is_asked_for_readiness_is_waited_for_only():
    (server,) = (service for service in COMPOSE["services"].values() if "healthcheck" in service)
    assert server["healthcheck"]["test"] == ["CMD", "nereid", "health"]


def test_a_package_can_be_mapped_where_it_is_unpacked():
    """The engine mounts a tmpfs without exec if nobody asks for it."""
    (tmp,) = (each for each in COMPOSE["services"]["server"]["tmpfs"] if each.split(":")[0] == "/tmp")
    assert "exec" in tmp.split(":")[1].split(",")


def test_what_is_built_is_built_for_the_processors_of_libtorch():
    built = [service for service in COMPOSE["services"].values() if "build" in service]
    assert len(built) == 2
    assert all(service["platform"] == "linux/amd64" for service in built)
