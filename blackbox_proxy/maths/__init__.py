"""Arrays in, arrays out: the equation and the tail, sampling, acceptance of drafts. No models, no requests."""
