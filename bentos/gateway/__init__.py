"""The gateway: one process that answers for every model, several versions side by side.

It needs its last good routes and their verified bundles to keep answering, and nothing else: not
Airflow, not MLflow, not the ledger.
"""
