"""A model of Triton's python backend that answers with what it was sent."""

import json

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.names = [(given["name"], made["name"]) for given, made in zip(config["input"], config["output"])]

    def execute(self, requests):
        return [pb_utils.InferenceResponse([self.echo(request, *names) for names in self.names]) for request in requests]

    def echo(self, request, given, made):
        return pb_utils.Tensor(made, pb_utils.get_input_tensor_by_name(request, given).as_numpy())
