"""Triton's clients of both protocols behind one face, for tests of behaviour that is the same over both.

Begin at `connect`. What the HTTP client gives as dictionaries is made into objects with the names of the messages.
"""

import json
from types import SimpleNamespace

import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from tritonclient.grpc import model_config_pb2

PROTOCOLS = ["grpc", "http"]

# The status of a refusal, by gRPC's name for it.
HTTP_STATUS = {
    "INVALID_ARGUMENT": "400",
    "NOT_FOUND": "404",
    "UNIMPLEMENTED": "501",
    "UNAVAILABLE": "503",
    "INTERNAL": "500",
}


def connect(protocol, server):
    """A client of `server`; a context manager."""
    return GrpcClient(server.grpc) if protocol == "grpc" else HttpClient(server.http)


class GrpcClient(grpcclient.InferenceServerClient):
    """Triton's synchronous gRPC client."""

    protocol = "grpc"

    @staticmethod
    def status(name):
        """The status of an exception, by gRPC's name for it."""
        return f"StatusCode.{name}"

    @staticmethod
    def tensor(name, dtype, array):
        """An input of `array`."""
        return grpcclient.InferInput(name, list(array.shape), dtype).set_data_from_numpy(array)

    @staticmethod
    def wanted(name):
        """A requested output."""
        return grpcclient.InferRequestedOutput(name)

    @staticmethod
    def classes(name, count):
        """A requested output as its best classes."""
        return grpcclient.InferRequestedOutput(name, class_count=count)

    def infer_compressed(self, algorithm, *arguments):
        """As `infer`, with the request compressed."""
        return self.infer(*arguments, compression_algorithm=algorithm)

    def trace_settings(self, model=None, changes=None):
        """The trace settings after `changes`; the level is a list, everything else a text."""
        update = self.update_trace_settings(model, changes) if changes else self.get_trace_settings(model)
        values = {name: list(setting.value) for name, setting in update.settings.items()}
        return {name: value if name == "trace_level" else "".join(value) for name, value in values.items()}

    def log_settings(self, changes=None):
        """The log settings after `changes`."""
        update = self.update_log_settings(changes) if changes else self.get_log_settings()
        return {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in update.settings.items()}


class HttpClient(httpclient.InferenceServerClient):
    """Triton's synchronous HTTP client, with the answers of the gRPC client."""

    protocol = "http"

    @staticmethod
    def status(name):
        """The status of an exception, by gRPC's name for it."""
        return HTTP_STATUS[name]

    @staticmethod
    def tensor(name, dtype, array):
        """An input of `array`."""
        return httpclient.InferInput(name, list(array.shape), dtype).set_data_from_numpy(array)

    @staticmethod
    def wanted(name):
        """A requested output."""
        return httpclient.InferRequestedOutput(name)

    @staticmethod
    def classes(name, count):
        """A requested output as its best classes."""
        return httpclient.InferRequestedOutput(name, class_count=count)

    def infer_compressed(self, algorithm, *arguments):
        """As `infer`, with the request compressed."""
        return self.infer(*arguments, request_compression_algorithm=algorithm)

    def infer(self, *arguments, **keywords):
        result = super().infer(*arguments, **keywords)
        response = objects({"id": ""} | result.get_response())
        result.get_response = lambda: response
        return result

    def trace_settings(self, model=None, changes=None):
        """The trace settings after `changes`."""
        return self.update_trace_settings(model, changes) if changes else self.get_trace_settings(model)

    def log_settings(self, changes=None):
        """The log settings after `changes`."""
        return self.update_log_settings(changes) if changes else self.get_log_settings()

    def get_server_metadata(self):
        return objects(super().get_server_metadata())

    def get_model_metadata(self, *arguments):
        return objects(super().get_model_metadata(*arguments))

    def get_model_config(self, model, version="", as_json=False):
        config = super().get_model_config(model, version)
        if as_json:
            return {"config": config}
        for tensor in config["input"] + config["output"]:
            tensor["data_type"] = model_config_pb2.DataType.Value(tensor["data_type"])
        return SimpleNamespace(config=objects(config))

    def get_inference_statistics(self, *arguments):
        return objects(super().get_inference_statistics(*arguments))

    def get_model_repository_index(self):
        absent = {"version": "", "state": "", "reason": ""}
        return SimpleNamespace(models=[SimpleNamespace(**absent | line) for line in super().get_model_repository_index()])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def objects(value):
    """`value` with objects instead of dictionaries."""
    return json.loads(json.dumps(value), object_hook=lambda members: SimpleNamespace(**members))
