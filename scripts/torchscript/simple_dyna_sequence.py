# What comes in, one more with the first request of a sequence, and the sequence's number more with the last.
def forward(self, INPUT, START, END, READY, CORRID):
    return INPUT + (START + END * CORRID * READY).to(INPUT.dtype)
