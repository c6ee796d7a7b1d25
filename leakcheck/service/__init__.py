"""Job services: a contract that describes one, and the scenarios of hostile but valid use (`run_service`)."""

from leakcheck.service.contract import Contract, load_contract
from leakcheck.service.engine import ServiceOptions, run_service

__all__ = ["Contract", "ServiceOptions", "load_contract", "run_service"]
