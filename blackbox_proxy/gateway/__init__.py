"""The gateway: tuned models behind OpenAI's routes, for many users at a time.

    prompts.py    a request's prompt -> what the base is asked and what the pair is shown
    pairs.py      no pair, for the base under its own name
    engine.py     `TunedEngine`: steps of a tuner -> events of `serve`
    telling.py    how each token was chosen, for requests that ask
    failures.py   failures of the far and the near side -> answers                          pure
    places.py     who may decode now, who waits, who is sent away
    keys.py       keys of callers, kept hashed
    watch.py      request ids, logs and metrics
    page.py       the page at / (page.html, page.css, page.js)
    app.py        the Starlette app
    run.py        what is opened and served, and how it ends

`serve` has the routes and the wire format; nothing here does arithmetic on probabilities.
"""
