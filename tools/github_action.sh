#!/usr/bin/env bash
# What the step "Judge" of action.yml does: its inputs are in DIAGTOOL_…, its outputs go to $GITHUB_OUTPUT.
# It ends with 0 whatever was found, so that the SARIF file is uploaded; a later step fails.
set -uo pipefail
set -f # words are no patterns for files

fail() {
    echo "::error title=diagtool::$1"
    echo "status=2" >> "$GITHUB_OUTPUT"
    exit 0
}

targets=() maps=() options=()
# Words are separated by blanks and lines, and nothing in them is expanded.
for word in $DIAGTOOL_TARGETS; do targets+=("$word"); done
for word in $DIAGTOOL_MAP; do maps+=("--map=$word"); done
for word in $DIAGTOOL_OPTIONS; do options+=("$word"); done

if [[ -n $DIAGTOOL_RUN && ${#targets[@]} -gt 0 ]]; then fail "give targets or run, not both"; fi
if [[ -z $DIAGTOOL_RUN && ${#targets[@]} -eq 0 ]]; then fail "give targets (process ids, cores, .diag files) or run (a command)"; fi

options+=(--format github "${maps[@]}")
[[ -n $DIAGTOOL_FAIL_ON ]] && options+=(--fail-on "$DIAGTOOL_FAIL_ON")
[[ -n $DIAGTOOL_BASELINE ]] && options+=(--baseline "$DIAGTOOL_BASELINE")
sarif=""
if [[ -n $DIAGTOOL_SARIF ]]; then
    sarif=$(realpath -m -- "$DIAGTOOL_SARIF")
    rm -f -- "$sarif"
    options+=(--format "sarif=$sarif")
fi

program=("$DIAGTOOL_PROGRAM")
if [[ $DIAGTOOL_SUDO == true ]]; then program=(sudo --preserve-env=GITHUB_STEP_SUMMARY,PATH "$DIAGTOOL_PROGRAM"); fi

if [[ -n $DIAGTOOL_RUN ]]; then
    "${program[@]}" run "${options[@]}" -- bash -euo pipefail -c "$DIAGTOOL_RUN"
else
    "${program[@]}" leaks "${options[@]}" -- "${targets[@]}"
fi
status=$?

echo "status=$status" >> "$GITHUB_OUTPUT"
if [[ -n $sarif && -e $sarif ]]; then
    printf 'sarif=%s\n' "${sarif//$'\n'/}" >> "$GITHUB_OUTPUT"
    # Code scanning knows no suppressions: what the baseline ignores would be an alert there.
    upload=${RUNNER_TEMP:-/tmp}/diagtool-upload.sarif
    "$DIAGTOOL_PYTHON" - "$sarif" "$upload" << 'PYTHON' && printf 'upload=%s\n' "$upload" >> "$GITHUB_OUTPUT"
import json
import sys

with open(sys.argv[1], encoding="utf-8") as file:
    document = json.load(file)
for run in document["runs"]:
    run["results"] = [result for result in run["results"] if not result.get("suppressions")]
with open(sys.argv[2], "w", encoding="utf-8") as file:
    json.dump(document, file)
PYTHON
fi
exit 0
