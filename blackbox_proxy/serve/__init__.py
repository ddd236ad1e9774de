"""OpenAI-compatible HTTP: routes that know only an `Engine`, and `host`, which puts a local model behind them.

    requests.py   JSON -> `Order`, or the error that OpenAI's API gives       pure
    wire.py       events -> the JSON of responses, chunks and error bodies    pure
    engine.py     what stands behind the routes: TextWanted in, Events out    a protocol
    text.py       stop strings, whole characters, text offsets                pure
    routes.py     the Starlette app
    limits.py     what one client may take, as options                        pure
    guard.py      ASGI middleware that keeps them: names, pages, bodies
    connections.py  and below HTTP: silent clients, how many
    emulation.py  how other servers behave, as data
    emulated.py   their requests in the terms of this one                     pure
    native.py     SGLang's own route                                          pure
    network.py    an engine as seen over a slow network
    prompts.py    messages and text -> token ids, with a tokenizer's chat template
    options.py    what a host can be told
    host.py       the engine over `TransformersBase`; running it
    process.py    a host in a process or thread of its own                    for tests, demo and benchmarks

Nothing here does arithmetic on probabilities. Importing this package loads neither torch nor starlette.
"""
