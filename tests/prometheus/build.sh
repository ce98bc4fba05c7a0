#!/usr/bin/env bash
# Builds promtool, the replay program and a Prometheus server once, outside the repository.
set -euo pipefail
cd "$(dirname "$0")"
bin="${XDG_CACHE_HOME:-$HOME/.cache}/tracelab/bin"
mkdir -p "$bin"
# None needs service discovery, whose cloud libraries are most of the build.
go build -tags remove_all_sd -o "$bin/prometheus-replay" .
go build -tags remove_all_sd -o "$bin/promtool" github.com/prometheus/prometheus/cmd/promtool
go build -tags remove_all_sd -o "$bin/prometheus" github.com/prometheus/prometheus/cmd/prometheus
echo "built in $bin"
