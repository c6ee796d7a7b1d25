#!/usr/bin/env bash
# QA-REL-001, test 5: the machine runs out of something. Options are those of `leakcheck exhaust`: --profile P, --target T …
set -euo pipefail
. "$(dirname "$0")/common.sh"
exec leakcheck exhaust "$@"
