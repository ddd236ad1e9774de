"""How requests get to a server and answers back, whatever they say. Knows HTTP, no prompts, tokens or candidates.

    connection (limits, retry) -> bytes or events      an error of `errors` where that fails

retry: what waiting cures; limits: requests and tokens per minute; failures: the client's exceptions in the words of
`errors`; secrets: keys taken out of what a server says.
"""
