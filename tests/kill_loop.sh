#!/usr/bin/env bash
# Kills the gateway and starts it again on the same log, 100 times or as often as the argument says, under load: nothing that it
# acknowledged may be missing, come twice or out of order. Another seed kills at other moments:
#
#     tests/kill_loop.sh [ROUNDS]
#     RINGWAY_SEED=7 PROFILE=debug tests/kill_loop.sh 500
#
# Needs the binaries of cargo build --release --workspace (or of the PROFILE's).
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-100}
seed=${RINGWAY_SEED:-1}
programs=target/${PROFILE:-release}
for program in ringway ringway-loadtest; do
    if [ ! -x "$programs/$program" ]; then
        echo "$programs/$program is not there: cargo build --release --workspace" >&2
        exit 2
    fi
done
for durability in written synced; do
    "$programs/ringway-loadtest" crash --spawn "$programs/ringway" --no-pin --quiet --rounds "$rounds" --seed "$seed" \
        --payload-bytes 1500 --durability "$durability"
done
