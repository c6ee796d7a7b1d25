"""A contract of the stand-in service, with a planted defect, and runs of it."""

import re
from pathlib import Path

from leakcheck.campaigns.result import Result
from leakcheck.service import ServiceOptions, load_contract, run_service

HERE = Path(__file__).parent
STANDIN = HERE / "standin.toml"


def contract(directory: Path, defect: str = "", **changes: tuple[str, str]) -> Path:
    """Write the stand-in's contract; `changes` are regular expressions → what replaces them once."""
    text = STANDIN.read_text().replace("{contract_dir}", str(HERE))
    text = text.replace('DATA = "{data}"\n', f'DATA = "{{data}}"\nDEFECT = "{defect}"\n')
    for pattern, new in changes.values():
        text, count = re.subn(pattern, new, text, count=1)
        assert count == 1, pattern
    path = directory / "contract.toml"
    path.write_text(text)
    return path


def kernels(directory: Path, defect: str = "", **changes: tuple[str, str]) -> Path:
    """Write the contract of a stand-in whose jobs are like kernels: they only end by being deleted, or with it."""
    kernel = {
        "env": (r'(DATA = "\{data\}"\n)', r'\1KERNELS = "1"\n'),
        "create": (r", json = \{ workflow.*?\} \}", " }"),
        "cancel": (
            r"(cancel = .*?) \}",
            r'\1, status = [204] }\njobs = ""\ngone = true\nvolatile = true\nid_in_arguments = true',
        ),
        "fails": (r"fails = .*\n", ""),
        "succeeded": (r"succeeded = .*\n", ""),
    }
    return contract(directory, defect, **kernel | changes)


def tried(path: Path, *rows: str, **options: object) -> Result:
    return run_service(load_contract(path), path, ServiceOptions(only=rows, settle=0.5, **options))
