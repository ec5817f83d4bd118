# A number for each three bytes of a text that stand together, lower case and upper case alike; -1 where there are no
# more. The first step of the ensemble `tokenise_free`.


def forward(self, TEXT: List[str]) -> Tensor:
    rows: List[Tensor] = []
    for each in TEXT:
        text = " " + each.lower() + " "
        numbers: List[int] = []
        for at in range(min(len(text) - 2, 256)):
            number = (ord(text[at]) & 255) * 65536 + (ord(text[at + 1]) & 255) * 256 + (ord(text[at + 2]) & 255)
            numbers.append(number)
        while len(numbers) < 256:
            numbers.append(-1)
        rows.append(torch.tensor(numbers))
    return torch.stack(rows)
