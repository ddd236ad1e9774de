"""OpenAI-compatible HTTP: routes that know only an `Engine`. `host` puts a local model there, `gateway` tuned ones.

    requests.py   JSON -> `Order`, or the error that OpenAI's API gives       pure
    wire.py       events -> the JSON of responses, chunks and error bodies    pure
    engine.py     what stands behind the routes: TextWanted in, Events out    a protocol
    gate.py       who is answered when, and what is told of it                a protocol
    text.py       stop strings, whole characters, text offsets                pure
    answering.py  an order, answered: whole or as a stream
    routes.py     the Starlette app
    description.py  the routes for tools that read OpenAPI                    pure
    emulation.py  how other servers behave, as data
    emulated.py   their requests in the terms of this one                     pure
    native.py     SGLang's own route                                          pure
    tokenizing.py  what an engine tells of its tokenizer

Nothing here does arithmetic on probabilities. `door` has the limits. Importing this package does not load starlette.
"""
