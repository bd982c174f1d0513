"""``airlock demo``: the whole story on a fresh stack, with everything taken down at its end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from airlock import settings as environment
from airlock import specs
from airlock.airflow_api import AirflowApi
from airlock.core.errors import AirlockError, NotPossible
from airlock.demo.feed import Feed
from airlock.demo.home import fresh_home
from airlock.demo.progress import Poll, Progress
from airlock.demo.story import APRIL, MODEL, Story
from airlock.demo.summary import Champion, Client, RouteChange, Summary, quantile_ms
from airlock.demo.waiting import Patience, StoryBroken
from airlock.demo.world import World
from airlock.ledger import Ledger
from airlock.settings import Settings
from airlock.stack import ADMIN, APPROVER, Stack, exclusive, password_of, passwords_file, watch_memory
from airlock.stack.signals import undisturbed

SPEED = 6.0


def demo_home() -> Path:
    """Where a demo keeps its state unless told otherwise."""
    return environment.load().home / "demo"


@contextlib.contextmanager
def demo(console: Console, *, home: Path, port_base: int, speed: float = SPEED) -> Iterator[Summary]:
    """Play the story in ``home``. The stack stays up while the context is open, and no longer.

    Raises:
        NotPossible: the folder is somebody else's, or a stack is up in it.
        PortTaken, Unavailable: the stack could not be started.
    """
    with staged(console, home=home, port_base=port_base, speed=speed) as stage:
        try:
            stage.story.play()
        finally:
            stage.end()
        summary = _summary(stage)
        _show(console, summary, stage.settings)
        yield summary


@dataclass(frozen=True)
class Stage:
    """A story that can be played, and what belongs to it. ``end`` stops its traffic; the stack stays up."""

    story: Story
    settings: Settings
    world: World
    ledger: Ledger
    progress: Progress
    peak: Callable[[], float]
    end: Callable[[], None]


@contextlib.contextmanager
def staged(console: Console, *, home: Path, port_base: int, speed: float = SPEED) -> Iterator[Stage]:
    """A fresh stack in ``home`` and a story that has not begun. The stack ends with the context.

    Raises: as :func:`demo`.
    """
    # The feed, the stack and the recipe in this process must agree on the folder.
    os.environ["AIRLOCK_HOME"] = str(home.resolve())
    base = environment.load()
    spec = specs.find(base, MODEL)
    stack = Stack(base)
    _prepare(console, stack, base)
    progress = Progress(console)
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(_take_down, stack)
        peak = cleanup.enter_context(watch_memory(stack))
        feed = Feed(spec, base)
        cleanup.callback(feed.close)
        playing = cleanup.enter_context(contextlib.ExitStack())
        playing.enter_context(progress.shown())
        stack.up(port_base, owned=True, progress=lambda part, _: progress.say(f"{part} is healthy"))
        settings = stack.settings
        progress.say(
            f"airflow {settings.airflow_url}  mlflow {settings.mlflow_url}  gateway "
            f"{settings.gateway_url}; users and passwords: {passwords_file(settings)}"
        )
        api = playing.enter_context(AirflowApi(settings.airflow_url, ADMIN, password_of(settings, ADMIN)))
        approver = playing.enter_context(AirflowApi(settings.airflow_url, APPROVER, password_of(settings, APPROVER)))
        _wait_for_dags(api)
        world = World(feed, f"{settings.gateway_url}/v1/models/{MODEL}/predict", APRIL, key=spec.data.key, speed=speed)
        story = Story(spec, settings, api=api, approver=approver, feed=feed, world=world, progress=progress)
        ledger = Ledger(settings.ledger_url)
        playing.enter_context(Poll(0.5, lambda: _watch(progress, ledger, world)))
        playing.callback(world.stop)
        yield Stage(story, settings, world, ledger, progress, peak, playing.close)


def _take_down(stack: Stack) -> None:
    with undisturbed():
        stack.down()


def _prepare(console: Console, stack: Stack, settings: Settings) -> None:
    """A home without a stack and without an earlier demo's state."""
    if stack.abandoned():
        console.print(f"a demo was killed and left its stack in {settings.home} running: taking it down")
        stack.down()
    elif stack.status().parts:
        raise NotPossible(
            f"a stack runs in {settings.home}; end it with Ctrl-C where it was started, "
            f"or with: airlock --home {settings.home} down"
        )
    with exclusive(settings):
        if fresh_home(settings.home):
            console.print(f"removed what an earlier demo left in {settings.home}")


def _summary(stage: Stage) -> Summary:
    story, world, ledger = stage.story, stage.world, stage.ledger
    traffic = world.traffic(latencies=True)
    champion = ledger.champion(MODEL)
    ordered = sorted(traffic.latencies)
    return Summary(
        ok=all(act.ok for act in story.acts) and traffic.failed == 0,
        seconds=round(stage.progress.seconds, 1),
        peak_memory_mb=round(stage.peak(), 1),
        acts=tuple(story.acts),
        client=Client(
            requests=traffic.requests,
            failed=traffic.failed,
            p50_ms=quantile_ms(ordered, 0.5),
            p99_ms=quantile_ms(ordered, 0.99),
        ),
        routes=tuple(
            RouteChange(at=route.written_at, generation=route.generation, weights=route.weights, reason=route.reason)
            for route in ledger.routes(MODEL)
        ),
        champion=Champion(version=champion.version, digest=champion.bundle.digest) if champion else None,
        rollback=story.observed.rollback,
        urls=_urls(stage.settings, story.observed.report),
    )


def _wait_for_dags(api: AirflowApi) -> None:
    """Wait until the scheduler knows the model's DAGs."""
    wanted = [f"{MODEL}__{kind}" for kind in ("train", "release", "monitor")]

    def known() -> bool:
        if errors := api.import_errors():
            said = "; ".join(f"{file}: {text.strip().splitlines()[-1]}" for file, text in errors.items())
            raise StoryBroken(f"Airflow cannot read {said}")
        return all(api.has_dag(dag_id) for dag_id in wanted)

    Patience().until(known, f"Airflow to know {', '.join(wanted)}", lambda: [api.has_dag(dag_id) for dag_id in wanted])


def _watch(progress: Progress, ledger: Ledger, world: World) -> None:
    """Bring the line of now up to date, and tell every new route. What does not answer is asked again."""
    with contextlib.suppress(AirlockError):
        route = ledger.route(MODEL)
        if route is not None and route.generation != progress.now.generation:
            progress.now.generation = route.generation
            progress.route(route.weights, route.champion, route.shadow, route.reason)
        traffic = world.traffic()
        progress.now.requests, progress.now.failed = traffic.requests, traffic.failed
        progress.now.clock = traffic.now if traffic.requests else None


def _urls(settings: Settings, report: str | None) -> dict[str, str]:
    """Addresses to look at. ``report`` is the drift report's, if one was made."""
    return {
        "airflow": settings.airflow_url,
        "mlflow": settings.mlflow_url,
        "gateway": f"{settings.gateway_url}/",
        **({"evidently": report} if report else {}),
    }


def _show(console: Console, summary: Summary, settings: Settings) -> None:
    table = Table("act", "", "seconds", "what was seen", title="airlock demo", title_justify="left")
    for act in summary.acts:
        table.add_row(
            act.name, "[green]ok[/green]" if act.ok else "[red]failed[/red]", f"{act.seconds:.0f}", act.detail
        )
    console.print(table)
    client = summary.client
    console.print(
        f"{client.requests:,} requests, {client.failed} failed, p50 {client.p50_ms} ms, p99 {client.p99_ms} ms; "
        f"{summary.seconds:.0f} s; peak memory {summary.peak_memory_mb:,.0f} MB",
        highlight=False,
    )
    for name, url in summary.urls.items():
        console.print(f"{name:<10} {url}", highlight=False)
    console.print(f"{'users':<10} admin, approver; passwords: {passwords_file(settings)}", highlight=False)
    console.print(f"{'state':<10} {settings.home}  (airlock --home {settings.home} history {MODEL})", highlight=False)
