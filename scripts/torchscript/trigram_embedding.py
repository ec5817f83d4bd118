# The sum of a random direction for each trigram, as long as one: texts that have many trigrams in common point the same
# way. The directions come from the numbers themselves, so that there is nothing to learn and nothing to store.
# The second step of the ensemble `tokenise_free`.


def forward(self, TRIGRAMS: Tensor) -> Tensor:
    axis = torch.arange(1, 129)
    mixed = (TRIGRAMS.unsqueeze(-1) + axis * 16777619) * 2654435761
    mixed = (mixed ^ (mixed >> 15)) * 2246822519
    mixed = (mixed ^ (mixed >> 13)) * 3266489917
    signs = ((mixed >> 17) & 1).float() * 2.0 - 1.0
    given = (TRIGRAMS >= 0).float().unsqueeze(-1)
    sum = (signs * given).sum(1)
    return sum / torch.clamp(torch.sqrt((sum * sum).sum(1, True)), min=1e-12)
