"""A contract of the stand-in service, with a planted defect, and runs of it."""

import re
from pathlib import Path

from leakcheck.campaigns.result import Result
from leakcheck.service import ServiceOptions, load_contract, run_service

HERE = Path(__file__).parent
STANDIN = HERE / "standin.toml"


def contract(directory: Path, defect: str = "", **changes: str) -> Path:
    """Write the stand-in's contract; `changes` are regular expressions → what replaces them once."""
    text = STANDIN.read_text().replace("{contract_dir}", str(HERE))
    text = text.replace('DATA = "{data}"\n', f'DATA = "{{data}}"\nDEFECT = "{defect}"\n')
    for pattern, new in changes.values():
        text, count = re.subn(pattern, new, text, count=1)
        assert count == 1, pattern
    path = directory / "contract.toml"
    path.write_text(text)
    return path


def tried(path: Path, *rows: str, **options: object) -> Result:
    return run_service(load_contract(path), path, ServiceOptions(only=rows, settle=0.5, **options))
