"""Steer a release that is on its way: pause, resume, extend, promote or abort it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from airflow.sdk import Context
from pydantic import TypeAdapter, ValidationError

from airlock.core.errors import DataInvalid, NotFound
from airlock.core.release import Release
from airlock.core.spec import Duration
from airlock.operators.base import ModelOperator, actor, refusals_are_final
from airlock.operators.links import GatewayLink

ACTIONS = ("pause", "resume", "extend", "promote", "abort")


class SteerReleaseOperator(ModelOperator):
    """Do to the model's release on its way what a person asks for; who asks is whoever started the run.

    ``pause`` keeps the shares as they are, while guards go on; ``resume`` ends a pause; ``extend`` moves the deadline
    by ``extend_by``; ``promote`` lets the release through its remaining steps, past no breach; ``abort`` takes it off
    traffic. The release's own run finds out by itself.

    :param action: one of them
    :param reason: why, in words, for the ledger
    :param extend_by: of ``extend``: a duration such as 90s, 15m, 6h or 14d
    :return: the ``Release`` after it
    """

    template_fields = ("action", "reason", "extend_by")
    operator_extra_links = (GatewayLink(),)

    def __init__(self, *, action: str, reason: str, extend_by: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.action = action
        self.reason = reason
        self.extend_by = extend_by

    @refusals_are_final
    def execute(self, context: Context) -> dict[str, Any]:
        self.links[GatewayLink().name] = self.settings.gateway_url
        if unknown := sorted(set(context["dag_run"].conf or {}) - set(self.template_fields)):
            expected = ", ".join(self.template_fields)
            raise DataInvalid(f"{self.model}: {', '.join(unknown)} is nothing that steers; expected {expected}")
        release = self.control.current(self.model)
        if release is None:
            raise NotFound(f"{self.model} has no release on its way that could {self.action}")
        self.guard_traffic()
        steered = self._steer(release, actor(context))
        self.log.info("Release %s: %s: it is %s", steered.id, self.action, steered.phase)
        return steered.model_dump(mode="json")

    def _steer(self, release: Release, actor: str) -> Release:
        control = self.control
        if self.action not in ACTIONS:
            raise DataInvalid(f"there is no action {self.action!r}; choose from {', '.join(ACTIONS)}")
        if self.action == "extend":
            return control.extend(release.id, self._by(), actor=actor, reason=self.reason)
        act: dict[str, Callable[..., Release]] = {
            "pause": control.pause,
            "resume": control.resume,
            "promote": control.promote_now,
            "abort": control.abort,
        }
        return act[self.action](release.id, actor=actor, reason=self.reason)

    def _by(self) -> timedelta:
        try:
            by: timedelta = TypeAdapter(Duration).validate_python(self.extend_by)
        except ValidationError as error:
            raise DataInvalid(
                f"extend_by is {self.extend_by!r}; expected a duration such as 90s, 15m, 6h or 14d"
            ) from error
        if not by:
            raise DataInvalid("extend_by is nothing: say by how long the deadline moves")
        return by
