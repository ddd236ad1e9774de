"""The host: a local model behind the routes of `serve`, for tests, demo, benchmarks, and as a server of one's own.

    options.py    what a host can be told
    prompts.py    messages and text -> token ids, with a tokenizer's chat template
    network.py    an engine as seen over a slow network
    engine.py     the engine over `TransformersBase`
    run.py        what is opened and served
    process.py    a host in a process of its own

Importing this package loads neither torch nor starlette.
"""
