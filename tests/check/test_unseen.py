"""Of what is asked in the areas of every device, all has a case, or a reason why not."""

from __future__ import annotations

from virtq.check.cases import all_cases
from virtq.check.catalogue import requirements
from virtq.check.register_log import RULES
from virtq.check.unseen import UNSEEN

AREAS = (
    "split",
    "packed",
    "framing",
    "vq",
    "vqreset",
    "reset",
    "status",
    "cfg",
    "feat",
    "resv",
    "suspend",
    "notify",
    "init",
)
AREAS_OF_DISKS = ("blk",)


def test_everything_of_the_core_and_of_disks_has_a_case_or_a_reason() -> None:
    cases = [*all_cases().values(), *RULES.values()]
    checked = {id for case in cases for id in case.requirements}
    open_ = [
        requirement.id
        for requirement in requirements().values()
        if requirement.observable != "no"
        and (
            requirement.area in AREAS
            or (requirement.party != "driver" and requirement.area in AREAS_OF_DISKS)
        )
        and requirement.id not in checked | UNSEEN.keys()
    ]
    assert open_ == []


def test_no_reason_is_given_for_what_has_a_case() -> None:
    cases = [*all_cases().values(), *RULES.values()]
    checked = {id for case in cases for id in case.requirements}
    assert not checked & UNSEEN.keys()
    assert UNSEEN.keys() <= requirements().keys()
