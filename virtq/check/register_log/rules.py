"""What a rule is: a function that looks at a trail and raises when a requirement does not hold.

It returns how often the log gave occasion to see it; a rule without occasion says nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, cast

from virtq.check.case import Broken, Case, NotObservable
from virtq.check.catalogue import requirements
from virtq.check.register_log.trail import Step, Trail

Rule = Callable[[Trail], int]

RULES: dict[str, Case] = {}
"""All rules by name, as cases."""


def rule(*ids: str, bus: str | None = None) -> Callable[[Rule], Rule]:
    """Registers a function as a rule. `ids`: the requirements that it checks. `bus`: the one that
    it is about, if not both. Raises KeyError for an unknown id."""
    for id in ids:
        requirements()[id]

    def register(function: Rule) -> Rule:
        module = function.__module__.rpartition(".")[2]
        name = f"driver_{module}.{function.__name__}"
        assert name not in RULES, name
        RULES[name] = Case(
            name=name,
            title=" ".join((inspect.getdoc(function) or "").split()),
            requirements=ids,
            needs=0,
            device_id=None,
            bus=bus,
            kinds=(),
            run=cast(Any, _run(function)),
        )
        return function

    return register


def _run(function: Rule) -> Callable[[Trail], None]:
    def run(trail: Trail) -> None:
        if not function(trail):
            raise NotObservable("nothing in the log gives occasion to see it")

    return run


def expect(condition: object, expected: str, came: Step | str) -> None:
    """Raises Broken unless the condition holds."""
    if not condition:
        raise Broken(expected, str(came))


def first(steps: list[Step], found: Callable[[Step], bool]) -> int | None:
    """The index of the first step that is so."""
    return next((i for i, step in enumerate(steps) if found(step)), None)


def queue_lives(trail: Trail) -> Iterator[tuple[int, list[Step]]]:
    """For each virtqueue, in each life of the device: the steps with it selected, and its
    notifications are not among them."""
    for life in trail.lives():
        for queue in sorted({step.queue for step in life if step.field.startswith("queue_")}):
            steps = [
                step
                for step in life
                if step.field.startswith("queue_")
                and step.field != "queue_select"
                and step.queue == queue
            ]
            if steps:
                yield queue, steps
