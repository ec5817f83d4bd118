# The sum of what a sequence brings: `sum` is the state, which comes back with the sequence's next request.
def forward(self, input, sum):
    sum = sum + input
    return sum, sum
