"""Which optional interfaces an injector has is found by their names, once, and is what `isinstance` tells."""

import pytest

from injectors import injector_for, protocol
from injectors.plan import Plan
from injectors.protocol import offers

INTERFACES = (
    protocol.ActsBetween,
    protocol.Contends,
    protocol.Continues,
    protocol.Exhausts,
    protocol.FailsCalls,
    protocol.ShapesArena,
    protocol.ShapesLaunch,
    protocol.Traces,
)
PLANS = (
    "normal",
    "forced:tree@3.2ms",
    "launch:0.1/mkdir(/run/box)#1:before:SIGKILL",
    "launch:0.3/rmdir(/var/lib/fault-made)#*:EBUSY",
    "disk:full@0,under",
    "lock:kill-holder",
    "state:0:truncate=4,sleeping",
)


class Named:
    """Has a name of an interface as an attribute of its own, and two of the three names of another."""

    def __init__(self) -> None:
        self.continues, self.stage, self.trace = True, "launch", None


@pytest.mark.parametrize("interface", INTERFACES)
def test_it_is_what_isinstance_tells(interface: type) -> None:
    inner = [injector_for(Plan.read(plan))._inner for plan in PLANS]
    for one in [*inner, Named()]:
        assert offers(one, interface) is isinstance(one, interface), (one, interface)


def test_a_name_that_is_missing_is_no_interface() -> None:
    assert offers(Named(), protocol.Continues)
    assert not offers(Named(), protocol.Traces)
