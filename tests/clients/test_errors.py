"""Bad requests: the status and the message that clients know, and a server that goes on as before."""

import json
import urllib.error
import urllib.request
from urllib.parse import quote

import grpc
import pytest
from protocols import HTTP_STATUS
from tritonclient.grpc import service_pb2, service_pb2_grpc


@pytest.fixture(scope="module")
def stub(server):
    """The bare service: the client classes refuse some bad requests themselves."""
    with grpc.insecure_channel(server.grpc) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def request(model, *inputs, **fields):
    """A request with raw contents; an input is (name, type, shape, bytes or None for no contents)."""
    built = service_pb2.ModelInferRequest(model_name=model, **fields)
    for name, datatype, shape, raw in inputs:
        built.inputs.add(name=name, datatype=datatype, shape=shape)
        if raw is not None:
            built.raw_input_contents.append(raw)
    return built


def pair(first=("INPUT0", "FP32", [1, 4], bytes(16)), second=("INPUT1", "INT32", [1, 4], bytes(16)), **fields):
    """A request for the model `pair`; right unless told otherwise. An input that is None is left out."""
    return request("pair", *[each for each in (first, second) if each], **fields)


def text(shape, raw):
    """A request for strings, with these raw bytes."""
    return request("batched_BYTES", ("INPUT0", "BYTES", shape, raw))


def typed(datatype, **contents):
    """A request with typed contents for a model of its type."""
    built = request(f"batched_{datatype}", ("INPUT0", datatype, [1, 1], None))
    for field, values in contents.items():
        getattr(built.inputs[0].contents, field).extend(values)
    return built


def mixed():
    """Raw and typed contents at once."""
    built = pair()
    built.inputs[0].contents.fp32_contents.extend([1, 2, 3, 4])
    return built


def with_parameter(key, **value):
    """A right request but for one parameter."""
    built = pair()
    for field, content in value.items():
        setattr(built.parameters[key], field, content)
    return built


def with_output(*names):
    """A right request that asks for these outputs."""
    built = pair()
    for name in names:
        built.outputs.add(name=name)
    return built


def string(content):
    """One string element on the wire."""
    return len(content).to_bytes(4, "little") + content


BAD = {
    "unknown model": (
        request("nobody"), "NOT_FOUND", "unknown model: 'nobody' is not found"),
    "unknown version": (
        pair(model_version="7"), "NOT_FOUND", "'pair' version 7 is not found"),
    "version is no number": (
        pair(model_version="one"), "INVALID_ARGUMENT", "specified version string 'one'"),
    "version is zero": (
        pair(model_version="0"), "INVALID_ARGUMENT", "invalid model version specified '0'"),
    "too few inputs": (
        pair(second=None), "INVALID_ARGUMENT",
        "expected 2 inputs but got 1 inputs for model 'pair'. Got input(s) ['INPUT0'], but missing required input(s)"
        " ['INPUT1']. Please provide all required input(s)."),
    "no inputs": (
        pair(None, None), "INVALID_ARGUMENT", "expected 2 inputs but got 0 inputs for model 'pair'"),
    "unknown input": (
        pair(("INPUT9", "FP32", [1, 4], bytes(16))), "INVALID_ARGUMENT",
        "unexpected inference input 'INPUT9' for model 'pair'"),
    "input twice": (
        pair(("INPUT1", "INT32", [1, 4], bytes(16))), "INVALID_ARGUMENT", "input 'INPUT1' already exists in request"),
    "wrong type": (
        pair(("INPUT0", "FP64", [1, 4], bytes(32))), "INVALID_ARGUMENT",
        "inference input 'INPUT0' data-type is 'FP64', but model 'pair' expects 'FP32'"),
    "type that is none": (
        pair(("INPUT0", "FLOAT", [1, 4], bytes(16))), "INVALID_ARGUMENT", "FLOAT"),
    "wrong dimension": (
        pair(("INPUT0", "FP32", [1, 3], bytes(12))), "INVALID_ARGUMENT",
        "unexpected shape for input 'INPUT0' for model 'pair'. Expected [-1,4], got [1,3]."),
    "too few dimensions": (
        pair(("INPUT0", "FP32", [4], bytes(16))), "INVALID_ARGUMENT", "Expected [-1,4], got [4]."),
    "negative dimension": (
        request("batched_FP32", ("INPUT0", "FP32", [1, -1], bytes(4))), "INVALID_ARGUMENT",
        "All input dimensions should be specified for input 'INPUT0'"),
    "batch sizes differ": (
        pair(second=("INPUT1", "INT32", [2, 4], bytes(32))), "INVALID_ARGUMENT",
        "input 'INPUT1' batch size does not match other inputs for 'pair'"),
    "batch too large": (
        pair(("INPUT0", "FP32", [9, 4], bytes(144)), ("INPUT1", "INT32", [9, 4], bytes(144))), "INVALID_ARGUMENT",
        "inference request batch-size must be <= 8 for 'pair'"),
    "batch of zero": (
        pair(("INPUT0", "FP32", [0, 4], b""), ("INPUT1", "INT32", [0, 4], b"")), "INVALID_ARGUMENT",
        "inference request batch-size must be <= 8 for 'pair'"),
    "too few bytes": (
        pair(("INPUT0", "FP32", [1, 4], bytes(15))), "INVALID_ARGUMENT",
        "input byte size mismatch for input 'INPUT0' for model 'pair'. Expected 16, got 15"),
    "too many bytes": (
        pair(("INPUT0", "FP32", [1, 4], bytes(20))), "INVALID_ARGUMENT", "Expected 16, got 20"),
    "absurd dimension": (
        request("batched_FP32", ("INPUT0", "FP32", [1, 2**62], bytes(4))), "INVALID_ARGUMENT", "'INPUT0'"),
    "dimensions whose product overflows": (
        request("plain_FP32", ("INPUT0", "FP32", [2**63 - 1, 2], bytes(4))), "INVALID_ARGUMENT", "'INPUT0'"),
    "raw and typed contents": (
        mixed(), "INVALID_ARGUMENT",
        "contents field must not be specified when using raw_input_contents for 'INPUT0' for model 'pair'"),
    "neither raw nor typed contents": (
        pair(("INPUT0", "FP32", [1, 4], None), ("INPUT1", "INT32", [1, 4], None)), "INVALID_ARGUMENT",
        "unable to find data for input tensor 'INPUT0' for model 'pair' in request."),
    "typed contents of another type": (
        typed("FP32", int64_contents=[1]), "INVALID_ARGUMENT",
        "unexpected explicit tensor data for input tensor 'INPUT0' for model 'batched_FP32' of type"),
    "typed contents too short": (
        request("batched_FP32", ("INPUT0", "FP32", [1, 2], None)), "INVALID_ARGUMENT", "'INPUT0'"),
    "half floats only as raw contents": (
        typed("FP16", fp32_contents=[1]), "INVALID_ARGUMENT", "'INPUT0'"),
    "unknown output": (
        with_output("OUTPUT9"), "INVALID_ARGUMENT", "unexpected inference output 'OUTPUT9' for model 'pair'"),
    "output twice": (
        with_output("OUTPUT0", "OUTPUT0"), "INVALID_ARGUMENT", "output 'OUTPUT0' already exists in request"),
    "sequence id of a wrong kind": (
        with_parameter("sequence_id", bool_param=True), "INVALID_ARGUMENT",
        "invalid value type for 'sequence_id' parameter, expected int64_param or string_param."),
    "sequence start of a wrong kind": (
        with_parameter("sequence_start", int64_param=1), "INVALID_ARGUMENT",
        "invalid value type for 'sequence_start' parameter, expected bool_param."),
    "timeout of a wrong kind": (
        with_parameter("timeout", string_param="1"), "INVALID_ARGUMENT", "'timeout'"),
    "reserved parameter": (
        with_parameter("triton_mine", bool_param=True), "INVALID_ARGUMENT",
        "parameter keys starting with 'triton_' are reserved for Triton usage"),
    "strings: length cut off": (
        text([1, 1], b"\x01\x00"), "INVALID_ARGUMENT", "incomplete string length indicator"),
    "strings: element cut off": (
        text([1, 1], b"\x05\x00\x00\x00ab"), "INVALID_ARGUMENT", "string"),
    "strings: length that lies": (
        text([1, 1], b"\xff\xff\xff\xff"), "INVALID_ARGUMENT", "string"),
    "strings: too many": (
        text([1, 1], string(b"a") + string(b"b")), "INVALID_ARGUMENT", "unexpected number of string elements"),
    "strings: too few": (
        text([1, 2], string(b"a")), "INVALID_ARGUMENT", "string elements"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_request_is_refused_with_its_reason(stub, case):
    bad, status, message = BAD[case]
    with pytest.raises(grpc.RpcError) as refused:
        stub.ModelInfer(bad, timeout=10)
    assert refused.value.code().name == status, refused.value.details()
    assert message in refused.value.details()
    assert stub.ModelInfer(pair(), timeout=10).model_name == "pair"


def over_http(server, bad):
    """The status and the message that answer `bad`, with its raw contents as binary data, over HTTP."""

    def parameters(message):
        return {key: getattr(value, value.WhichOneof("parameter_choice")) for key, value in message.parameters.items()}

    inputs = [
        {"name": each.name, "datatype": each.datatype, "shape": list(each.shape)}
        | {"parameters": {"binary_data_size": len(raw)}}
        for each, raw in zip(bad.inputs, bad.raw_input_contents, strict=True)
    ]
    outputs = [{"name": each.name, "parameters": parameters(each)} for each in bad.outputs]
    body = json.dumps({"id": bad.id, "parameters": parameters(bad), "inputs": inputs, "outputs": outputs}).encode()
    version = f"/versions/{quote(bad.model_version, safe='')}" if bad.model_version else ""
    path = f"/v2/models/{quote(bad.model_name, safe='')}{version}/infer"
    headers = {"Inference-Header-Content-Length": str(len(body))}
    asked = urllib.request.Request(f"http://{server.http}{path}", b"".join([body, *bad.raw_input_contents]), headers)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(asked, timeout=10)
    return str(refused.value.code), json.loads(refused.value.read())["error"]


# Those that HTTP can say at all: contents are there, once for each input.
HTTP_BAD = [
    case
    for case, (bad, *_) in BAD.items()
    if len(bad.inputs) == len(bad.raw_input_contents) and not any(each.HasField("contents") for each in bad.inputs)
]


@pytest.mark.parametrize("case", HTTP_BAD)
def test_bad_request_is_refused_over_http_in_the_same_words(server, case):
    bad, status, message = BAD[case]
    found, text = over_http(server, bad)
    assert found == HTTP_STATUS[status], text
    assert message in text


def test_a_refusal_names_the_request(stub):
    for given, shown in (("mine", "[request id: mine] "), ("", "[request id: <id_unknown>] ")):
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(pair(second=None, id=given), timeout=10)
        assert refused.value.details().startswith(shown)


@pytest.mark.parametrize("call", ["RepositoryModelLoad", "RepositoryModelUnload"])
def test_control_is_refused_where_models_are_not_controlled(stub, call):
    asked = getattr(service_pb2, f"{call}Request")(model_name="pair")
    with pytest.raises(grpc.RpcError) as refused:
        getattr(stub, call)(asked, timeout=10)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "explicit model load / unload is not allowed" in refused.value.details()


@pytest.mark.parametrize(
    "call, message",
    [
        ("SystemSharedMemoryRegister", service_pb2.SystemSharedMemoryRegisterRequest()),
        ("CudaSharedMemoryRegister", service_pb2.CudaSharedMemoryRegisterRequest()),
    ],
)
def test_what_is_not_there_yet_says_so(stub, call, message):
    with pytest.raises(grpc.RpcError) as refused:
        getattr(stub, call)(message, timeout=10)
    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_refused_requests_do_not_grow_the_server(server, stub):
    absurd = [BAD[case][0] for case in ("absurd dimension", "too few bytes", "strings: length that lies")]
    before = resident_kb(server)
    for _ in range(500):
        for bad in absurd:
            with pytest.raises(grpc.RpcError):
                stub.ModelInfer(bad, timeout=10)
    assert resident_kb(server) - before < 16 * 1024


def resident_kb(server):
    """The memory that the server holds now."""
    with open(f"/proc/{server.process.pid}/status") as status:
        return int(next(line for line in status if line.startswith("VmRSS")).split()[1])
