"""The embedded stack: MLflow, Airflow's four processes and the gateway on one machine, on loopback.

stack = Stack(settings.load())
stack.up()      # healthy, or everything taken down again and an error that names the log
stack.status()  # what runs, and whether it answers
stack.down()    # nothing of it is left
"""

from airlock.stack.credentials import ADMIN, APPROVER, USERS, password_of, passwords_file
from airlock.stack.embedded import PartStatus, Stack, StackStatus, watch_memory
from airlock.stack.ports import Ports, PortTaken
from airlock.stack.state import exclusive, settings_of

__all__ = [
    "ADMIN",
    "APPROVER",
    "USERS",
    "PartStatus",
    "PortTaken",
    "Ports",
    "Stack",
    "StackStatus",
    "exclusive",
    "password_of",
    "passwords_file",
    "settings_of",
    "watch_memory",
]
