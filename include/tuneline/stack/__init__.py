"""The whole stack on one machine: local pods, Airflow, an engine and the gateway.

It runs in the Airflow environment (`python -m tuneline.stack`). Whatever needs the ML
environment is started as a separate process.
"""
