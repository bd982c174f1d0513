"""The ledger: the database that holds releases, journal, verdicts and routes. The one truth."""

from airlock.ledger.ledger import Ledger, new_release_id
from airlock.ledger.records import Effect, EffectKind, Lease, TimelineEntry, VersionRecord, Vote

__all__ = ["Effect", "EffectKind", "Lease", "Ledger", "TimelineEntry", "VersionRecord", "Vote", "new_release_id"]
