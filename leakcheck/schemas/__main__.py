"""``python -m leakcheck.schemas``: writes the schemas anew, after a type has changed."""

from pathlib import Path

from leakcheck.schemas import SCHEMAS, generated

if __name__ == "__main__":
    for name in SCHEMAS:
        Path(__file__).with_name(f"{name}.json").write_text(generated(name), encoding="utf-8")
