#!/usr/bin/env bash
# QA-REL-001, test 6: nothing is left. Options are those of `leakcheck leaks`: --iterations N (1000 if it is not given),
# --target T …
set -euo pipefail
. "$(dirname "$0")/common.sh"
exec leakcheck leaks --iterations 1000 "$@"
