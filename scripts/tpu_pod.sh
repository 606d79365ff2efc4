#!/usr/bin/env bash
# Serves one engine on every host of a TPU pod slice; host 0 answers clients on port 8000.
#
#   scripts/tpu_pod.sh NAME ZONE [flags of tpustream.serve]
#
# NAME is a TPU VM slice (gcloud compute tpus tpu-vm create) on whose workers this repository was
# installed: gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all --command='pip install ".[tpu]"'.
# PYTHON names the interpreter there, COORDINATOR_PORT a port that the workers may use among themselves.
# Ends when the engine ends on all workers; Ctrl-C ends the connections, and with them the processes.
set -euo pipefail
if [[ $# -lt 2 ]]; then
  sed -n '2,9p' "$0" >&2
  exit 2
fi
name=$1 zone=$2
shift 2
port=${COORDINATOR_PORT:-8476}
IFS=';' read -ra addresses <<<"$(gcloud compute tpus tpu-vm describe "$name" --zone="$zone" \
  --format='value(networkEndpoints[].ipAddress)')"
if [[ ${#addresses[@]} -lt 2 ]]; then
  echo "$name: wanted a slice of several hosts, got ${#addresses[@]}; one host needs no script: python -m tpustream.serve" >&2
  exit 1
fi
# The machine's own number is in its metadata, and is the one that libtpu counts by.
number='$(curl -sf -H Metadata-Flavor:Google http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number)'
flags=(--hosts="${#addresses[@]}" --coordinator="${addresses[0]}:$port" "$@")
exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all -- -tt \
  "${PYTHON:-python3} -u -m tpustream.serve --host_index=$number $(printf '%q ' "${flags[@]}")"
