"""What the gateway counted of a candidate, from its prediction log, for a replay.
Requests, labels and outcomes are read in one module, because they are matched by the same rows of the log.

Each entry of the log was written when it was counted, so the log's order is the gateway's. An answer of the candidate
is one observation, together with its comparison where it was scored in shadow; where it was served, the comparison
comes with the champion's shadow answer. What stood in for a failed answer is counted when it had answered.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from airlock import prediction_log
from airlock.core.errors import NotFound
from airlock.core.release import plan
from airlock.core.replay_traffic import Observation, Traffic
from airlock.core.route import place
from airlock.core.spec import ModelSpec, Task
from airlock.core.tally import Tally
from airlock.settings import Settings
from airlock.steps.replay_labels import Labels, labels_of
from airlock.steps.simulation import tally_of

Floats = npt.NDArray[np.float64]
Roles = Literal["logged", "plan"]

_BOTH = ("served", "shadow")
_COLUMNS = (
    *("at", "event_time", "key", "request_id", "row", "release", "pin", "routing_key", "version", "variant", "role"),
    *("fallback", "error", "latency_ms", "sequence", "counted_at", "step", "timed_out", "prediction"),
)


class Recorded(NamedTuple):
    """A recorded log, ready to be replayed, and what the replay cannot know from it."""

    traffic: Traffic
    requests: int
    served_share: float
    since: datetime
    until: datetime
    roles: Roles

    @property
    def caveat(self) -> str:
        """What it means that all of this has happened under the log's own shares."""
        if self.roles == "plan":
            shares = "who answers goes by the plan's shares and the router's hash, as if both roles failed alike"
        elif self.traffic.followed:
            shares = "steps and roles are those of the log"
        else:
            shares = "roles are those of the log, whatever the plan's shares; steps go on by the policy"
        return (
            f"Of the {self.requests:,} requests that the candidate was asked it answered {self.served_share:.1%} and "
            f"scored the rest in shadow; {shares}. Answers change no traffic here: what clients would have done after "
            "other answers, and how a version fares under more load, is not in the log. Outcomes belong to whoever "
            "answered, so their number follows the log's shares"
        )


def recorded(
    spec: ModelSpec,
    settings: Settings,
    *,
    candidate: str,
    champion: str,
    release: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    roles: Roles = "logged",
    follow: bool = False,
) -> Recorded:
    """Everything that was counted of the candidate, in the order in which the gateway counted it.

    Labels and outcomes come as long after the answer as they came after the event.

    Args:
        release: only what was logged under it.
        since, until: of the events, as in the prediction log.
        roles: ``logged``: the candidate's role is what it was; ``plan``: the router's hash gives it one by the share
            of the step that the replay stands in. A pinned request keeps its role.
        follow: change steps where the log does, if its steps are those of the spec.

    Raises:
        NotFound: the log does not hold a request that the candidate was asked.
    """
    score = "probability" if spec.task is Task.CLASSIFICATION else "prediction"
    columns = list(dict.fromkeys([*_COLUMNS, score]))
    log = prediction_log.read(settings, spec.model, since, until, columns, roles=_BOTH)
    log = log[log["release"] == release] if release is not None else log
    log = _in_order(log.assign(score=log[score]))
    if not ((log["version"] == candidate) & log["fallback"].isna()).any():
        raise NotFound(
            f"the prediction log of {spec.model} holds no request that version {candidate} was asked"
            f"{f' in release {release}' if release else ''}; versions in it: "
            f"{', '.join(sorted(log['version'].dropna().unique())) or 'none'}"
        )
    return _Log(spec, settings, log, (candidate, champion)).recorded(release or spec.model, roles, follow=follow)


def _in_order(log: pd.DataFrame) -> pd.DataFrame:
    """The rows as they were counted; those of older gateways as they were asked, shadow scoring after the answer.

    ``request`` numbers the requests: an id alone is the client's, who may use it again.
    """
    steps = log["step"].notna()
    if steps.any():
        log = log[steps | log["sequence"].isna()]  # what was counted in no step came after its release was over
    known = pd.to_datetime(log["counted_at"], utc=True).notna()
    log = log.assign(
        time=pd.to_datetime(log["counted_at"], utc=True).where(known, log["at"]),
        rank=log["fallback"].notna() + 2 * (log["role"] == "shadow"),
    )
    log = log.sort_values(["time", "sequence", "request_id", "rank", "row"], kind="stable", ignore_index=True)
    return log.assign(request=log.groupby(["at", "request_id"], sort=False).ngroup())


class _Log:
    """The log of two versions, in the order in which it was counted."""

    def __init__(self, spec: ModelSpec, settings: Settings, log: pd.DataFrame, versions: tuple[str, str]) -> None:
        self.spec, self.settings, self.log, self.versions = spec, settings, log, versions
        ours, theirs = ((log["version"] == version) & log["fallback"].isna() for version in versions)
        self.start: datetime = log.loc[ours, "time"].iloc[0].to_pydatetime()
        self.seconds = (log["time"] - self.start).dt.total_seconds().to_numpy()
        self.heads = log[ours & (log["row"] == 0)]
        other = log.loc[theirs, ["request", "row", "score", "prediction", "role"]].assign(index=log.index[theirs])
        self.pairs = (
            log[ours]
            .assign(index=log.index[ours])
            .merge(
                other.drop_duplicates(["request", "row"]), on=["request", "row"], how="left", suffixes=("", "_champion")
            )
        )

    def recorded(self, salt: str, roles: Roles, *, follow: bool) -> Recorded:
        unknown = list(self._unknown())
        names = {step.name for step in plan(self.spec)}
        told = set(self.heads["step"].dropna())
        followed = follow and roles == "logged" and bool(self.heads["step"].notna().all()) and told <= names
        if follow and not followed and told - names:
            unknown.append(
                f"the log's steps ({', '.join(sorted(told))}) are not the policy's, which goes through its own"
            )
        observations = self._observations(salt, roles)
        released = self.heads["release"].dropna().unique()
        if len(released) > 1:
            unknown.append(
                f"the log holds {len(released)} releases, and the gateway counted keys anew in each: here they are one "
                "release, so guards by key observe less; name one of them with --release"
            )
        traffic = Traffic(
            self.start,
            observations,
            self._labels(),
            self._champion(),
            followed,
            str(released[0]) if len(released) else "",
            tuple(unknown),
        )
        heads = self.heads
        until = self.log["time"].iloc[-1].to_pydatetime()
        return Recorded(traffic, len(heads), float((heads["role"] == "served").mean()), self.start, until, roles)

    def _observations(self, salt: str, roles: Roles) -> list[Observation]:
        """Answers, comparisons and what stood in, each at its place in the log."""
        heads, planned = self.heads, roles == "plan"
        compared = self._compared()
        asked = pd.DataFrame(
            {
                "request": heads["request"],
                "index": heads.index,
                "role": heads["role"],
                "failed": heads["error"].notna(),
                "timed_out": heads["timed_out"].eq(True),
                "latency_ms": heads["latency_ms"].fillna(0.0),
                "step": heads["step"],
                "key": heads["routing_key"],
            }
        )
        if planned:
            keys = heads["routing_key"].fillna(heads["request_id"])
            asked["place"] = [place(salt, key) for key in keys]
            asked["role"] = asked["role"].where(heads["pin"].notna(), None)
        asked = asked.merge(compared, on="request", how="left")
        # A comparison belongs to the answer where that was scored in shadow, and to the champion's where it was served.
        own = asked["compared_at"] == asked["index"]
        stood_in = self._stood_in(asked)
        if planned:
            # Who would have answered from the candidate's place did answer: somebody stands in for each failure.
            asked["stood_in"], stood_in = asked["failed"], stood_in.iloc[:0]
        later = asked[asked["compared_at"].notna() & ~own]
        compared_at = later["compared_at"].to_numpy(np.int64)
        later = later.assign(index=compared_at, step=self.log["step"].to_numpy()[compared_at])
        asked["differences"] = asked["differences"].where(own, None)
        parts = [asked.assign(asked=True), later.assign(asked=False, failed=False, latency_ms=0.0, stood_in=False)]
        parts.append(stood_in.assign(asked=False, failed=False, latency_ms=0.0, stood_in=True, differences=None))
        return list(_told(pd.concat(parts, ignore_index=True).sort_values("index", kind="stable"), self.seconds))

    def _compared(self) -> pd.DataFrame:
        """Of each request that both versions answered: where that was known, the differences by row, and the flips."""
        pairs = self.pairs[self.pairs["score"].notna() & self.pairs["score_champion"].notna()]
        if self.spec.task is Task.CLASSIFICATION:
            flips = np.asarray(pairs["prediction"] != pairs["prediction_champion"])
        else:
            flips = np.zeros(len(pairs), bool)
        differences = (pairs["score"] - pairs["score_champion"]).tolist()
        request = pairs["request"].to_numpy()
        order = np.argsort(request, kind="stable")
        number, first = np.unique(request[order], return_index=True)
        at = np.asarray(pairs[["index", "index_champion"]].max(axis=1), np.int64)[order]
        ordered = [differences[row] for row in order.tolist()]
        ends = [*first[1:].tolist(), len(ordered)]
        rows = [tuple(ordered[start:end]) for start, end in zip(first.tolist(), ends, strict=False)]
        flipped = np.r_[0, np.cumsum(flips[order])]
        return pd.DataFrame(
            {
                "request": number,
                "compared_at": at[first],
                "differences": pd.Series(rows, dtype=object),
                "flips": flipped[ends[: number.size]] - flipped[first],
            }
        )

    def _stood_in(self, asked: pd.DataFrame) -> pd.DataFrame:
        """What answered in the candidate's place, where that failed."""
        rows = self.log[self.log["fallback"].notna() & (self.log["row"] == 0)]
        failed = asked.loc[asked["failed"] & (self.heads["role"] == "served").to_numpy(), "request"]
        rows = rows[rows["request"].isin(failed)]
        return pd.DataFrame(
            {"request": rows["request"], "index": rows.index, "role": "served", "step": rows["step"], "flips": 0}
        )

    def _champion(self) -> Champion:
        log = self.log
        asked = (log["version"] == self.versions[1]) & (log["role"] == "served") & log["latency_ms"].notna()
        rows = (asked & (log["row"] == 0)).to_numpy()
        return Champion(self.seconds[rows], log["latency_ms"].to_numpy(np.float64)[rows])

    def _unknown(self) -> Iterator[str]:
        """What the log does not say, in words."""
        log = self.log
        if older := int(log.loc[log["sequence"].isna(), "request"].nunique()):
            yield (
                f"{older:,} requests were logged by a gateway that did not write in which order it counted: they are "
                "taken in the order in which they were asked, each compared at once, so a decision may lie a few "
                "requests off"
            )
        if log["sequence"].notna().any():
            known = log.loc[log["sequence"].notna(), "time"]
            lost, restarts = prediction_log.gaps(
                self.settings, self.spec.model, known.iloc[0].to_pydatetime(), known.iloc[-1].to_pydatetime()
            )
            if lost:
                yield f"{lost:,} entries of the log are missing: what the gateway counted in them is not in the replay"
            if restarts:
                yield (
                    f"the numbers of the entries begin anew {restarts} times: the gateway was restarted, and one that "
                    "is killed may lose what it counted in its last second, which the log may have; or several wrote"
                )
        pairs, rows = self.pairs, self.pairs["row"] == 0
        alone = rows & (pairs["role"] == "shadow") & pairs["score"].notna() & pairs["score_champion"].isna()
        if alone.any():
            yield (
                f"{int(alone.sum()):,} answers that the candidate gave in shadow have no answer of the champion to the "
                "same request in the log: they are not compared"
            )

    def _labels(self) -> Labels | None:
        return labels_of(self.spec, self.settings, self.log, self.pairs, self.versions, self.start)


def _told(rows: pd.DataFrame, seconds: Floats) -> Iterator[Observation]:
    """The rows as observations; what a row does not have is what an observation has by default."""
    fields: dict[str, list[Any]] = {"at": seconds[rows["index"].to_numpy(np.int64)].tolist()}
    for name in Observation._fields[1:]:
        usual = Observation._field_defaults[name]
        if name in rows:
            missing = rows[name].isna().tolist()
            fields[name] = [usual if no else value for value, no in zip(rows[name].tolist(), missing, strict=True)]
        else:
            fields[name] = [usual] * len(rows)
    return map(Observation, *fields.values())


class Champion:
    """The tally of what the champion served by a time. It is asked for later and later times."""

    def __init__(self, times: Floats, latency: Floats) -> None:
        self._times, self._latency, self._counted, self._tally = times, latency, 0, Tally()

    def __call__(self, seconds: float) -> Tally:
        upto = int(np.searchsorted(self._times, seconds, "right"))
        if upto > self._counted:
            self._tally += tally_of(self._latency[self._counted : upto])
            self._counted = upto
        return self._tally
