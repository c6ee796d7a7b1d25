"""The planted defects of examples/judge, and the scenario that is meant for each."""

from pathlib import Path

JUDGE = Path(__file__).parents[2] / "examples" / "judge"
DEFECTS = {
    "cap-ignored": "S2.11",
    "checksum-ignored": "S2.4",
    "chunk-twice": "S2.3",
    "clean-active": "S3.9",
    "existence-told": "S3.4",
    "expired-url": "S3.5",
    "fd-left": "S3.12",
    "foreign-job": "S3.4",
    "ghost-run": "S1.4",
    "idempotency-ignored": "S1.3",
    "lost-cancel": "S3.6",
    "orphan-after-cancel": "S2.6",
    "quota-race": "S3.7",
    "redis-double": "S2.8",
    "redis-drop": "S2.8",
    "rerun-finished": "S2.9",
    "signature-ignored": "S3.5",
    "ssrf-decimal": "S3.3",
    "ssrf-redirect": "S3.3",
    "stuck-running": "S2.7",
    "tenant-mismatch": "S3.1",
    "terminal-overwritten": "S2.6",
    "upload-left": "S2.2",
    "upload-unlimited": "S1.1",
    "url-reused": "S3.5",
    "work-left": "S2.6",
}


def planted(directory: Path, defect: str) -> Path:
    """Write the judge's contract with a planted defect in all of its processes."""
    text = (JUDGE / "contract.toml").read_text().replace("{contract_dir}", str(JUDGE))
    text = text.replace('JUDGE_DATA = "{data}"\n', f'JUDGE_DATA = "{{data}}"\nJUDGE_DEFECT = "{defect}"\n')
    path = directory / "contract.toml"
    path.write_text(text)
    return path
