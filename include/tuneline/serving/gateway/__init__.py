"""The gateway: one OpenAI-compatible server in front of the engines.

It checks API keys, counts every token into a ledger, falls back along a chain of upstreams, and
shows by its probes whether a model really answers. `server.run_gateway` starts it,
`app.create_app` builds it, `keys.add_key` makes a key, `usage` and `costs` read the ledger.
"""
