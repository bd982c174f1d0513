"""The demo: one model's whole story, played on the embedded stack with the flights of 2013 as live traffic."""

from airlock.demo.run import SPEED, demo, demo_home
from airlock.demo.summary import Summary

__all__ = ["SPEED", "Summary", "demo", "demo_home"]
