"""The ledger: the database that holds releases, journal, verdicts and routes. The one truth."""

from airlock.ledger.ledger import Ledger, TimelineEntry, VersionRecord

__all__ = ["Ledger", "TimelineEntry", "VersionRecord"]
