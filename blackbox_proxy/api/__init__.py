"""The wire: what is sent to a server and what is read from its answers. Knows HTTP, no alpha and no pair.

    Ask -> echo.plan -> payload -> connection (limits, retry) -> streaming -> positions <- entries      Draft

limits: how fast; retry: what is sent again; native: SGLang's own route; recut: where a draft stops answering what will
be asked next; meter: what a cut stream has cost; naming: tokens asked about by name; scorer: many texts at once.
"""
