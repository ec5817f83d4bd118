"""A model of Triton's python backend that runs a TorchScript file, all requests of a batch at once."""

import json
from pathlib import Path

import torch
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.inputs = [each["name"] for each in config["input"]]
        self.outputs = [each["name"] for each in config["output"]]
        path = Path(args["model_repository"]) / args["model_version"] / "model.pt"
        self.model = torch.jit.load(path, map_location="cpu").eval()

    def execute(self, requests):
        given = [[self.tensor(request, name) for request in requests] for name in self.inputs]
        with torch.inference_mode():
            made = self.model(*(parts[0] if len(parts) == 1 else torch.cat(parts) for parts in given))
        made = made if isinstance(made, tuple) else (made,)
        rows = [len(part) for part in given[0]]
        parts = zip(*([each] if len(rows) == 1 else each.split(rows) for each in made))
        return [pb_utils.InferenceResponse(list(map(self.output, self.outputs, each))) for each in parts]

    @staticmethod
    def tensor(request, name):
        return torch.from_numpy(pb_utils.get_input_tensor_by_name(request, name).as_numpy())

    @staticmethod
    def output(name, tensor):
        return pb_utils.Tensor(name, tensor.numpy())
