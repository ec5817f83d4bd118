"""TLS, secrets, single-port mode and Unix-domain sockets, by Triton's clients."""

import subprocess

import grpc
import numpy
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from certificates import Authority, needs_openssl
from nereid import BINARY, Nereid, identity_config, write_model
from tritonclient.utils import InferenceServerException


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("secure")
    write_model(folder, "echo", identity_config(["FP32"]))
    return folder


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates"))


def tls_flags(front_end, pair, roots=None):
    mode = "use-ssl-mutual" if roots else "use-ssl"
    flags = [f"--{front_end}-{mode}", f"--{front_end}-server-cert={pair[0]}", f"--{front_end}-server-key={pair[1]}"]
    return flags + ([f"--{front_end}-root-cert={roots}"] if roots else [])


def port_of(address):
    return address.rsplit(":", 1)[1]


def echoes(library, client, **options):
    """Sends a tensor and compares what comes back."""
    data = numpy.arange(6, dtype=numpy.float32).reshape(1, 6)
    given = library.InferInput("INPUT0", [1, 6], "FP32")
    given.set_data_from_numpy(data)
    result = client.infer("echo", [given], **options)
    return numpy.array_equal(result.as_numpy("OUTPUT0"), data)


@needs_openssl()
def test_grpc_over_tls(models, authority):
    with Nereid(models, *tls_flags("grpc", authority.sign("server"))) as server:
        address = f"localhost:{port_of(server.grpc)}"
        with grpcclient.InferenceServerClient(
            address, ssl=True, root_certificates=str(authority.certificate)
        ) as client:
            assert echoes(grpcclient, client)
        with grpcclient.InferenceServerClient(address) as plain, pytest.raises(InferenceServerException):
            plain.is_server_live(client_timeout=5)


@needs_openssl()
def test_grpc_over_mutual_tls(models, authority):
    flags = tls_flags("grpc", authority.sign("server"), authority.certificate)
    certificate, key = authority.sign("client")
    with Nereid(models, *flags) as server:
        options = {"ssl": True, "root_certificates": str(authority.certificate)}
        address = f"localhost:{port_of(server.grpc)}"
        own = {"private_key": str(key), "certificate_chain": str(certificate)}
        with grpcclient.InferenceServerClient(address, **options, **own) as client:
            assert echoes(grpcclient, client)
        with grpcclient.InferenceServerClient(address, **options) as nobody:
            with pytest.raises(InferenceServerException) as refused:
                nobody.is_server_live(client_timeout=5)
            assert refused.value.status() in ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED")


@needs_openssl()
@pytest.mark.parametrize("mutual", [False, True])
def test_http_over_tls(models, authority, mutual):
    roots = authority.certificate if mutual else None
    certificate, key = authority.sign("client")
    options = {"ca_certs": str(authority.certificate)}
    if mutual:
        options |= {"certfile": str(certificate), "keyfile": str(key)}
    with Nereid(models, *tls_flags("http", authority.sign("server"), roots)) as server:
        address = f"localhost:{port_of(server.http)}"
        with httpclient.InferenceServerClient(address, ssl=True, ssl_options=options) as client:
            assert client.is_server_live()
            assert echoes(httpclient, client)


def test_one_port_serves_both_clients(models):
    with Nereid(models, "--single-port") as server:
        assert server.grpc == server.http
        with grpcclient.InferenceServerClient(server.grpc) as client:
            assert echoes(grpcclient, client)
        with httpclient.InferenceServerClient(server.http) as client:
            assert client.is_server_live()
            assert echoes(httpclient, client)


def test_grpc_on_a_socket_in_the_file_system(models, tmp_path):
    path = tmp_path / "grpc.sock"
    with Nereid(models, "--grpc-address", f"unix:{path}") as server:
        assert server.grpc == f"unix:{path}"
        # gRPC's C core would send the path as the authority, which is no authority in HTTP.
        authority = [("grpc.default_authority", "localhost")]
        with grpcclient.InferenceServerClient(server.grpc, channel_args=authority) as client:
            assert echoes(grpcclient, client)
    assert not path.exists()


def test_restricted_groups_want_their_secret(models, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("very secret\n")
    flags = [
        f"--grpc-restricted-protocol=inference,model-config:infer=@{secret}",
        f"--http-restricted-api=inference:infer-key=@{secret}",
    ]
    with Nereid(models, *flags) as server:
        with grpcclient.InferenceServerClient(server.grpc) as client:
            assert client.is_server_live()
            for headers in [None, {"triton-grpc-protocol-infer": "wrong"}]:
                with pytest.raises(InferenceServerException) as refused:
                    echoes(grpcclient, client, headers=headers)
                assert refused.value.status() == str(grpc.StatusCode.UNAVAILABLE)
                expected = "This protocol is restricted, expecting header 'triton-grpc-protocol-infer'"
                assert refused.value.message() == expected
            assert echoes(grpcclient, client, headers={"triton-grpc-protocol-infer": "very secret"})
        with httpclient.InferenceServerClient(server.http) as client:
            assert client.is_server_live()
            with pytest.raises(InferenceServerException) as refused:
                echoes(httpclient, client)
            assert refused.value.status() == "403"
            assert refused.value.message() == "This API is restricted, expecting header 'infer-key'"
            assert echoes(httpclient, client, headers={"infer-key": "very secret"})


@needs_openssl()
def test_health_is_asked_in_tls_and_over_a_socket(models, authority, tmp_path):
    pair = authority.sign("server")
    path = tmp_path / "http.sock"
    with Nereid(models, *tls_flags("grpc", pair), "--http-address", f"unix:{path}") as server:

        def health(*words):
            command = [BINARY, "health", "--timeout-ms", "10000", *words]
            return subprocess.run(command, capture_output=True, check=False).returncode

        secured = ["--grpc", f"localhost:{port_of(server.grpc)}"]
        assert health(*secured, "--root-cert", authority.certificate) == 0
        assert health(*secured) == 1
        assert health("--http", f"unix:{path}") == 0
        assert health("--http", f"unix:{path}.gone") == 1
