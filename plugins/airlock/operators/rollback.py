"""Give production back to an earlier version."""

from __future__ import annotations

from typing import Any

from airflow.sdk import Context

from airlock.core.route import Route
from airlock.operators.base import ModelOperator, actor, refusals_are_final, run_name
from airlock.operators.links import GatewayLink


class RollbackOperator(ModelOperator):
    """Route all traffic to an earlier good version and take back a release that is on its way.

    It needs the ledger and the version's verified files alone; MLflow may be down. Tried again or cleared,
    the task goes to the version that its run went to first, not one more step back.

    :param to: a version that was promoted before; None: the one before the champion
    :param reason: why, in words, for the ledger
    :return: the generation, champion and reason of the new route
    """

    template_fields = ("to", "reason")
    operator_extra_links = (GatewayLink(),)

    def __init__(self, *, to: str | None = None, reason: str = "rolled back by hand", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.to = to
        self.reason = reason

    @refusals_are_final
    def execute(self, context: Context) -> dict[str, Any]:
        self.links[GatewayLink().name] = self.settings.gateway_url
        to = self.to or self._decided(context)
        route = self._there_already(to)
        if route is None:
            route = self.control.roll_back_model(to, actor=actor(context), reason=self.reason)
        self.announce_champion(context, reason=route.reason)
        self.log.info("Generation %s: %s", route.generation, route.reason)
        return {"generation": route.generation, "champion": route.champion, "reason": route.reason}

    def _decided(self, context: Context) -> str:
        """The version before the champion, as this run found it first: written down before anything moves."""
        ledger, name = self.control.ledger, f"rollback/{run_name(context)}/{self.task_id}"
        if (kept := ledger.load_state(self.model, name)) is not None:
            return kept[0]
        version = self.control.version_before()
        ledger.save_state(self.model, name, version, revision=None)
        return version

    def _there_already(self, to: str) -> Route | None:
        """The route, if ``to`` holds production: a rollback that was cut off before the gateway heard of it."""
        ledger = self.control.ledger
        champion = ledger.champion(self.model)
        if champion is None or champion.version != to:
            return None
        self.control.restore(champion.release)
        return ledger.route(self.model)
