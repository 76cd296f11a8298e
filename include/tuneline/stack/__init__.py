"""The whole stack on one machine, from the Airflow environment (`python -m tuneline.stack`)."""
