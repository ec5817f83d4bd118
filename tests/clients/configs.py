"""Configurations of models that are more than one input and one output, and the inputs of those.

The plain ones are `nereid.identity_config`.
"""

import numpy as np
from nereid import parameter

# A decoupled model, which gives a response for each element; see `repeated`.
REPEAT = f"""
backend: "identity"
input [
  {{ name: "IN" data_type: TYPE_INT32 dims: [ -1 ] }},
  {{ name: "DELAY" data_type: TYPE_UINT32 dims: [ -1 ] }},
  {{ name: "WAIT" data_type: TYPE_UINT32 dims: [ 1 ] }}
]
output [ {{ name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] }}, {{ name: "IDX" data_type: TYPE_UINT32 dims: [ 1 ] }} ]
model_transaction_policy {{ decoupled: true }}
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
{parameter("identity.mode", "repeat")}"""


def repeated(values, delays_ms):
    """Inputs of a model that repeats these values, each after its delay: arrays with their types by name."""
    return {
        "IN": ("INT32", np.array(values, np.int32)),
        "DELAY": ("UINT32", np.array(delays_ms, np.uint32)),
        "WAIT": ("UINT32", np.array([0], np.uint32)),
    }


def countdown(max_batch_size=4, candidates=64, delay_us=2000):
    """An iterative model: a request with the number n is executed n times, each time for so long."""
    return f"""
backend: "identity"
max_batch_size: {max_batch_size}
input [ {{ name: "IN" data_type: TYPE_INT32 dims: [ 1 ] }} ]
output [ {{ name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] }} ]
sequence_batching {{
  iterative_sequence: true
  oldest {{ max_candidate_sequences: {candidates} }}
  state [
    {{ input_name: "COUNT_IN" output_name: "COUNT" data_type: TYPE_INT32 dims: [ 1 ] }},
    {{ input_name: "DONE_IN" output_name: "DONE" data_type: TYPE_INT32 dims: [ 1 ] }}
  ]
}}
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
{parameter("identity.mode", "countdown")}{parameter("sequence.done_output", "DONE")}{parameter("identity.delay_us", delay_us)}"""


def ensemble(inputs, outputs, steps, max_batch_size=1, dtype="FP32", dims="-1", extra=""):
    """An ensemble of these `steps`, all of whose tensors are of one type and shape."""
    lines = [f'platform: "ensemble"\nmax_batch_size: {max_batch_size}']
    for kind, names in (("input", inputs), ("output", outputs)):
        lines += [f'{kind} [ {{ name: "{name}" data_type: TYPE_{dtype} dims: [ {dims} ] }} ]' for name in names]
    return "\n".join([*lines, f"ensemble_scheduling {{ step [ {', '.join(steps)} ] }}", extra])


def step(model, inputs, outputs):
    """A step of an ensemble; its inputs and outputs are the ensemble's tensors by the model's names."""
    maps = [f'input_map {{ key: "{name}" value: "{tensor}" }}' for name, tensor in inputs.items()]
    maps += [f'output_map {{ key: "{name}" value: "{tensor}" }}' for name, tensor in outputs.items()]
    return f'{{ model_name: "{model}" model_version: -1 {" ".join(maps)} }}'


def chain(models, **options):
    """An ensemble that passes INPUT0 through identity `models`, one after the other, to OUTPUT0."""
    names = ["INPUT0", *(f"between{index}" for index in range(1, len(models))), "OUTPUT0"]
    steps = [step(model, {"INPUT0": given}, {"OUTPUT0": made}) for model, given, made in zip(models, names, names[1:])]
    return ensemble(["INPUT0"], ["OUTPUT0"], steps, **options)
