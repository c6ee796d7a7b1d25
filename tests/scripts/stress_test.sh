#!/usr/bin/env bash
# QA-REL-001, test 1: a long run. Options are those of `leakcheck stress`: --duration SECONDS, --submissions N (10000 if
# nothing is given), --target T … With both, what comes first ends it.
set -euo pipefail
. "$(dirname "$0")/common.sh"
[ $# -gt 0 ] || set -- --submissions 10000
exec leakcheck stress "$@"
