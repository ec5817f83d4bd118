# The sum and the difference of two tensors.


def forward(self, INPUT0: Tensor, INPUT1: Tensor) -> Tuple[Tensor, Tensor]:
    return (INPUT0 + INPUT1, INPUT0 - INPUT1)
