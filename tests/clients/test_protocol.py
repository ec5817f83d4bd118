"""Our protocol files against those inside Triton's client: every message, field, enum and method, by server reflection."""

from importlib.metadata import version

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tritonclient.grpc import model_config_pb2, service_pb2


@pytest.fixture(scope="module")
def ours(server):
    """The descriptors that the server serves, of the package `inference`."""
    reflection = reflection_pb2.ServerReflectionRequest
    with grpc.insecure_channel(server.grpc) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        symbols = ("inference.GRPCInferenceService", "inference.ModelConfig")
        asked = iter([reflection(file_containing_symbol=symbol) for symbol in symbols])
        files = {}
        for answer in stub.ServerReflectionInfo(asked, timeout=30):
            assert not answer.HasField("error_response"), answer.error_response
            for raw in answer.file_descriptor_response.file_descriptor_proto:
                file = descriptor_pb2.FileDescriptorProto.FromString(raw)
                files[file.name] = file
    return facts(files.values())


@pytest.fixture(scope="module")
def theirs():
    files = []
    for module in (service_pb2, model_config_pb2):
        file = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        files.append(file)
    return facts(files)


def facts(files):
    """Everything that decides what is on the wire, as a set of lines."""
    found = set()
    for file in files:
        if file.package == "inference":
            add_types(found, "inference", file.message_type, file.enum_type)
            for service in file.service:
                for method in service.method:
                    streams = (method.client_streaming, method.server_streaming)
                    found.add(f"rpc {service.name}.{method.name} {method.input_type} {method.output_type} {streams}")
    return found


def add_types(found, path, messages, enums):
    for enum in enums:
        for value in enum.value:
            found.add(f"enum {path}.{enum.name} {value.name} = {value.number}")
    for message in messages:
        name = f"{path}.{message.name}"
        found.add(f"message {name}")
        for field in message.field:
            oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else "-"
            kind = f"{field.type} {field.type_name or '-'} label {field.label} oneof {oneof}"
            found.add(f"field {name}.{field.name} = {field.number} type {kind}")
        add_types(found, name, message.nested_type, message.enum_type)


def test_nothing_of_the_protocol_is_missing(ours, theirs):
    assert theirs - ours == set()


@pytest.mark.skipif(version("tritonclient") < "2.73", reason="an older client does not know the newer fields")
def test_nothing_is_added_below_our_own_numbers(ours, theirs):
    added = ours - theirs
    numbers = [int(line.split(" = ")[1].split()[0]) for line in added if line.startswith("field ")]
    assert all(number >= 1000 for number in numbers), sorted(added)
