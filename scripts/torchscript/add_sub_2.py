# The sum and the difference of two tensors, computed in double precision.


def forward(self, INPUT0: Tensor, INPUT1: Tensor) -> Tuple[Tensor, Tensor]:
    a = INPUT0.double()
    b = INPUT1.double()
    return ((a + b).type_as(INPUT0), (a - b).type_as(INPUT1))
