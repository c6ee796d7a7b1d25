"""The command that is guarded: lets mkleak plant its leak, and kills it before it can take the leak away.

usage: leave.py PLACE PLANT OPTION...    (the facts of READY go to PLACE/facts, complaints to PLACE/complaints)
"""

import json
import sys
from pathlib import Path

from plants import UNAVAILABLE, Mkleak, UnavailableError


def main() -> int:
    place, *arguments = sys.argv[1:]
    mkleak = Mkleak(arguments, Path(place, "complaints"))
    try:
        Path(place, "facts").write_text(json.dumps(mkleak.expect("READY")))
    except UnavailableError as unavailable:
        print(unavailable, file=sys.stderr)
        return UNAVAILABLE
    finally:
        mkleak.kill()
    return 0


if __name__ == "__main__":
    sys.exit(main())
