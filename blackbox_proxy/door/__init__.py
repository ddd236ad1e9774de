"""Who comes in and how much a client may take, whatever the routes are: HTTP below what requests say.

    limits.py       what one client may take, as options                        pure
    refusing.py     an answer that says no                                      pure
    guard.py        ASGI middleware that keeps the limits: names, pages, bodies
    connections.py  and below HTTP: silent clients, how many
    running.py      an app that answers: its socket, its server, a thread of its own

`serve` has the routes. Importing this package loads neither uvicorn nor starlette.
"""
