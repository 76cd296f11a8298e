"""The gateway: one OpenAI-compatible server in front of the engines.

It checks API keys, counts every token into a ledger, falls back along a chain of upstreams, and
shows by its probes whether a model really answers. `app` serves requests, `chain` asks upstreams,
`accounts` holds keys and their budgets, `ledger` and `logs` keep what happened.
"""
