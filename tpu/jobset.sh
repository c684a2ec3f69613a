#!/usr/bin/env bash
# A run on a slice of a GKE cluster, as a JobSet: one pod per host, restarted together.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: tpu/jobset.sh --name NAME --slice SLICE --image IMAGE [options] -- ARGUMENTS OF rmas run

Applies a JobSet that runs `rmas run --distributed ARGUMENTS` on every host of a slice. The cluster
needs the JobSet controller, version 0.6 or newer, and a node pool of the slice.

options:
  --name NAME        of the JobSet
  --slice SLICE      generation and topology, such as v5e:4x4, v5p:4x4x4, v6e:8x8, v4:2x2x4,
                     v7x:2x2x2
  --image IMAGE      container with rmas_jax[tpu,storage]
  --secret SECRET    Kubernetes secret whose keys become variables of the run, such as HF_TOKEN
  --account ACCOUNT  Kubernetes service account that may write to output_dir; default: default
  --restarts N       of all pods together, after a preemption or a lost worker; default: 100
  --spot             nodes that may be preempted
  --dry_run          print the command and the manifest instead of applying it
  --help             print this

Exit codes 2 (bad input) and 3 (diverged) end the JobSet; after any other, all pods start again and
the run resumes: output_dir must be on object storage, such as gs://BUCKET/runs.
TEXT
}

fail() {
  echo "error: $1" >&2
  exit 2
}

name='' slice='' image='' secret='' account=default restarts=100 spot=false dry_run=false
arguments=()
while (($#)); do
  case $1 in
    --spot) spot=true ;;
    --dry_run) dry_run=true ;;
    --help) usage && exit 0 ;;
    --)
      shift
      arguments=("$@")
      break
      ;;
    --name | --slice | --image | --secret | --account | --restarts)
      (($# > 1)) || fail "$1 must have a value, got none"
      printf -v "${1#--}" '%s' "$2"
      shift
      ;;
    *) fail "$1 must be an option of tpu/jobset.sh; see --help" ;;
  esac
  shift
done
for option in name slice image; do
  [[ -n ${!option} ]] || fail "--$option must be given"
done
((${#arguments[@]})) || fail "arguments of rmas run must follow --, got none"

# Node label of the generation (cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus; of v7x,
# Ironwood/ of Google's repository AI-Hypercomputer/accelerator-microbenchmarks).
case $slice in
  v4:*) accelerator=tpu-v4-podslice ;;
  v5e:*) accelerator=tpu-v5-lite-podslice ;;
  v5p:*) accelerator=tpu-v5p-slice ;;
  v6e:*) accelerator=tpu-v6e-slice ;;
  v7x:*) accelerator=tpu7x ;;
  *) fail "--slice must be v4, v5e, v5p, v6e or v7x with a topology, such as v5e:4x4, got '$slice'" ;;
esac
topology=${slice#*:}
[[ $topology =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] ||
  fail "--slice must have a topology such as 4x4 or 4x4x4, got '$topology'"
chips=$((${topology//x/*}))
((chips % 4 == 0)) || fail "--slice must have a multiple of 4 chips, got $chips"
hosts=$((chips / 4)) # every host of a slice of several has four chips

# A string as YAML, which reads JSON's.
quoted() {
  local text=${1//\\/\\\\}
  printf '"%s"' "${text//\"/\\\"}"
}

manifest() {
  cat <<TEXT
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $restarts
    rules:
      - action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: slice
      replicas: 1
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes:
                  containerName: rmas
                  operator: In
                  values: [2, 3]
          template:
            spec:
              restartPolicy: Never
              serviceAccountName: $account
              terminationGracePeriodSeconds: 300
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $accelerator
                cloud.google.com/gke-tpu-topology: $topology
TEXT
  if $spot; then echo '                cloud.google.com/gke-spot: "true"'; fi
  cat <<TEXT
              containers:
                - name: rmas
                  image: $image
                  env:
                    - name: PYTHONUNBUFFERED
                      value: "1"
TEXT
  if [[ -n $secret ]]; then
    cat <<TEXT
                  envFrom:
                    - secretRef:
                        name: $secret
TEXT
  fi
  cat <<TEXT
                  resources:
                    limits:
                      google.com/tpu: 4
                  command: [rmas, run, --distributed]
                  args:
TEXT
  for argument in "${arguments[@]}"; do
    echo "                    - $(quoted "$argument")"
  done
}

if $dry_run; then
  echo "# kubectl apply -f -"
  manifest
else
  manifest | kubectl apply -f -
fi
