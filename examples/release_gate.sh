#!/usr/bin/env bash
# A step of a release pipeline: stops a model whose predictions moved too far from those of the released one.
#
#   release_gate.sh RELEASED CANDIDATE [BASELINE]
#
# RELEASED, CANDIDATE: predictions for the same rows: run folders, CSV or Parquet files, or s3:// URLs
# BASELINE: churn between retrains of the released model, as `odist churn RETRAIN RETRAIN --json > churn.json` prints it;
#     with it a candidate may move twice as far as a mere retrain does
#
# Leaves gate.xml (JUnit, for the pipeline's page) and ends with 0: release it, 5: hold it back, 2: a mistake in the call.
set -euo pipefail

released=$1 candidate=$2 baseline=${3:-}
if [ -n "$baseline" ]; then
    limits=(--baseline "$baseline" --max mean_abs_difference=2x --max flips=2x)
else
    limits=(--max mean_abs_difference=0.05 --max flips=0.06)
fi

code=0
odist churn "$released" "$candidate" "${limits[@]}" --max mean_shift=0.01 --report gate.xml || code=$?
case $code in
    0) echo "release: $candidate" ;;
    5) echo "hold back: $candidate" ;;
esac
exit $code
