"""What the guards say: what was observed of a limit, and what it allows, in words."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from airlock.core.route import Limit
from airlock.core.sequential import Interval
from airlock.core.tally import LateEvidence, Scope, Sums, Tally


class Seen(NamedTuple):
    """What was observed of a limit: how often, the sums of the values and of their squares, and their range."""

    n: int
    total: float
    squares: float
    smallest: float | None = None
    largest: float | None = None

    @classmethod
    def of(cls, sums: Sums) -> Seen:
        return cls(sums.n, sums.total, sums.squares, sums.smallest, sums.largest)


NO_MINUTE = "no whole minute of this step is over yet"
NO_KEY = (
    "no new key was asked in this step, of whose requests it therefore knows nothing; if all keys are known already, "
    "guard by request instead"
)

Part = Literal["release", "step", "recent"]
"""Over how much of a release: all of it, the current step, or the last requests."""


def found(
    limit: Limit,
    tally: Tally | None,
    seen: Seen,
    interval: Interval,
    *,
    scope: Scope = "all",
    part: Part = "release",
) -> str:
    """What was observed of a limit, over which requests. ``tally`` is where it was counted; late limits have none."""
    n, total = seen.n, seen.total
    where = "in this step " if part == "step" else ""
    noun = {"request": "requests", "key": "keys", "minute": "minutes"}[limit.by]
    requests = f"the last {n} {noun}" if part == "recent" else f"{n} {noun}"
    if limit.signal in ("errors", "slow", "fallbacks"):
        served = " that were for it to answer" if scope == "served" else ""
        if limit.by == "minute":
            return where + _counted(
                limit, None, f"{percent(interval.estimate)} of a minute's requests{served} in the mean over {requests}"
            )
        first = "the first request of " if limit.by == "key" else ""
        counted = tally if limit.by == "request" else None
        return where + _counted(
            limit, counted, f"{first}{total:g} of {requests}{served} ({percent(interval.estimate)})"
        )
    mean, sure = interval.estimate, f"in the mean (surely {interval.low:.3g} to {interval.high:.3g})"
    if limit.signal == "flips":
        return f"{where}on {requests} the candidate decided {percent(mean)} of the rows differently from the champion"
    if limit.signal == "difference":
        side = "below" if mean < 0 else "above"
        return f"{where}on {requests} the candidate's answers lie {abs(mean):.3g} {side} the champion's {sure}"
    if limit.signal == "absolute":
        return f"{where}on {requests} the candidate's answers differ from the champion's by {mean:.3g} {sure}"
    return f"on {n} {unit(limit)} {limit.observed or limit.name} is {mean:.3g} {sure}"


def _counted(limit: Limit, tally: Tally | None, share: str) -> str:
    if limit.signal == "slow":
        return f"the candidate took longer than {limit.over_ms:g} ms for {share}"
    if limit.signal == "fallbacks":
        return f"something else answered {share} in the candidate's place"
    timeouts = f", {tally.timeouts} of them by running out of time" if tally and tally.timeouts else ""
    return f"the candidate failed {share}{timeouts}"


def allowed(limit: Limit) -> str:
    """What the limit allows."""
    match limit.signal:
        case "slow":
            quantile = limit.name.removeprefix("latency_").removesuffix(f"_by_{limit.by}")
            return f"{percent(limit.bound)}, a {quantile} of {limit.over_ms:g} ms"
        case "errors" | "fallbacks" | "flips":
            return percent(limit.bound)
        case "difference":
            return f"{limit.bound:g} either way"
        case _:
            return f"{limit.bound:g}"


def unit(limit: Limit) -> str:
    """What is counted of a limit."""
    if limit.by == "minute":
        return "minutes with requests"
    if limit.by == "key":
        return "keys"
    if limit.signal in ("errors", "slow", "fallbacks"):
        return "requests"
    if not limit.late:
        return "requests answered by candidate and champion alike"
    if limit.name.startswith("business_"):
        return "outcomes"
    return "labelled answers" if limit.batch == 1 else f"batches of {limit.batch} labelled answers"


def measured(limit: Limit, value: float) -> str:
    """A value in the units of the limit's bound."""
    return percent(value) if limit.signal in ("errors", "slow", "fallbacks", "flips") else f"{value:.3g}"


def percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def too_few(limit: Limit, n: int, needed: int) -> str:
    return f"{n} of the {needed} {unit(limit)} that the guard needs"


def unwatched(limit: Limit, tally: Tally) -> str:
    """That nobody counted what a limit bounds, which is not the same as that nothing passed it."""
    return (
        f"the gateway has not counted which of the {tally.requests} requests took longer than {limit.over_ms:g} ms: "
        f"{limit.name} is not among the limits that it was given for this release"
    )


def come(late: LateEvidence, limit: str = "") -> str:
    """What share of the labels has come: of all answers, or of those that the limit of this name is about."""
    due, labelled = late.coverage(limit)
    asked, met = late.partners if limit in late.of_pairs else (0, 0)
    alone = "lack the champion's answer and are in no pair"
    if not due and asked > met:
        return f"of {asked} answers that are due {asked - met} {alone}"
    if not due:
        return f"none of the {late.answers} answers is old enough for its label to be due"
    share = percent(labelled / due)
    if limit in late.of_pairs:
        pairs = f"{labelled} of the {due} answers that are due have their label and the champion's answer ({share})"
        return f"{pairs}; {asked - met} more {alone}" if asked > met else pairs
    return f"labels have come for {labelled} of the {due} answers whose label is due ({share})"


def few_pairs(late: LateEvidence) -> str:
    """Why a comparison says nothing: the champion was not asked often enough."""
    asked, met = late.partners
    return (
        f"of {asked} answers that are due {asked - met} lack the champion's answer, which is more than half: what is "
        "left to compare depends on the gateway's load. See the metric airlock_shadow_dropped"
    )


def provisional(limit: Limit, late: LateEvidence, missing: float, worst: float | None) -> str:
    """Why the labels that are missing leave a verdict open; ``worst`` is the estimate if each were as bad as can be."""
    if worst is None:
        could = "which could hide any loss, for nothing bounds what they would do to this metric"
    else:
        could = f"and were each as bad as it can be, it would be {worst:.3g} and not at most {limit.bound:g}"
    what = "labels that are due are missing"
    if limit.name in late.of_pairs:
        what = "answers that are due lack their label or the champion's answer"
    return (
        f"provisional: {percent(missing)} of the {what}, {could}. If those that never come "
        f"are like the rest, say so in label.max_missing, which is {limit.max_missing:g}"
    )


def champions(details: dict[str, Any]) -> str:
    """The champion's latency beside the candidate's, if it is known."""
    value = details.get("champion_quantile_ms")
    return f"; the champion's was at most {value:.3g} ms in the same time" if value is not None else ""
