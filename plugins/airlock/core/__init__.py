"""The decision core: specs, verdicts, gates, guards, routes and the release machine.

Plain Python, pydantic, numpy and scipy. No Airflow, no input or output, no clock: every
function takes the evidence and the time as arguments and returns new values.
"""
