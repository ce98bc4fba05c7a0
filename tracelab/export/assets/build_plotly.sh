#!/usr/bin/env bash
# Builds plotly.min.js, the part of plotly.js that the report needs. Takes Node and npm; run it
# after a change of plotly_entry.js or of the plotly.js version below, which must be the one that
# the installed plotly.py carries (a test says so).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp "$here/plotly_entry.js" "$work/entry.js"
cd "$work"
npm init -y >/dev/null
npm install --no-audit --no-fund plotly.js@4.1.1 esbuild >/dev/null
npx esbuild entry.js --bundle --minify --format=iife --global-name=PlotlyBundle \
  '--footer:js=window.Plotly=PlotlyBundle.default;' --define:global=window \
  --legal-comments=eof --outfile=plotly.min.js
cp plotly.min.js "$here/plotly.min.js"
cp node_modules/plotly.js/LICENSE "$here/plotly.LICENSE"
