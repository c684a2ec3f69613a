#!/usr/bin/env bash
# A TPU slice as a queued resource: request it, install, run, follow, resume, delete.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: tpu/slice.sh COMMAND --name NAME --zone ZONE [options] [-- ARGUMENTS OF rmas run]

commands:
  create   request the slice, and wait until it is active
  setup    install rmas_jax on all workers
  run      start `rmas run --distributed ARGUMENTS` on all workers, in the background
  tail     follow the log of a worker
  resume   until the run ends: start it again after a lost worker, request the slice again after
           a preemption
  delete   delete the slice and its request

options:
  --name NAME        of the queued resource and of its node
  --zone ZONE        such as us-west4-a
  --project PROJECT  default: that of gcloud's configuration
  --type TYPE        accelerator type, such as v5litepod-16, v5p-128, v6e-64, v4-32, tpu7x-16
                     (create, resume)
  --runtime VERSION  software version of the VMs; default: by type
  --spot             a Spot slice, which may be preempted (create, resume)
  --package SPEC     requirement for pip, or a wheel on this machine (setup, resume); default: that
                     of the last setup of this slice, or rmas_jax[tpu,storage]
  --env NAME         variable of this shell for the run, such as HF_TOKEN; may be repeated (run,
                     resume). Its value is neither printed nor written to a file; lists of processes
                     show it while the run starts
  --worker N         whose log to follow (tail); default: 0
  --every SECONDS    between looks at the run (resume); default: 60
  --dry_run          print the commands instead of running them
  --help             print this

`rmas run` ends with 0 (finished), 2 (bad input), 3 (diverged) or another code, after which the same
command resumes it: output_dir must therefore be on object storage, such as gs://BUCKET/runs.
The package of a setup is kept in ~/.local/state/rmas_jax/slices, a wheel as a copy, until `delete`.
TEXT
}

fail() {
  echo "error: $1" >&2
  exit 2
}

name='' zone='' project='' type='' runtime='' package=''
worker=0 every=60 spot=false dry_run=false
arguments=() variables=()

parse() {
  while (($#)); do
    case $1 in
      --spot) spot=true ;;
      --dry_run) dry_run=true ;;
      --help) usage && exit 0 ;;
      --)
        shift
        arguments=("$@")
        return
        ;;
      --name | --zone | --project | --type | --runtime | --package | --env | --worker | --every)
        (($# > 1)) || fail "$1 must have a value, got none"
        if [[ $1 == --env ]]; then variables+=("$2"); else printf -v "${1#--}" '%s' "$2"; fi
        shift
        ;;
      *) fail "$1 must be an option of tpu/slice.sh; see --help" ;;
    esac
    shift
  done
}

# Words as the shell reads them: in single quotes where it would change them.
show() {
  local text='' word
  for word; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
    text+=" $word"
  done
  echo "${text:1}"
}

# Prints the exit code of the run on a worker, or whether it runs.
# shellcheck disable=SC2016 # the worker's shell expands it
look='cat ~/rmas.code 2>/dev/null \
|| { kill -0 "$(cat ~/rmas.pid)" 2>/dev/null && echo running; } || echo none'

# Runs a command, or prints it.
run() {
  if $dry_run; then show "$@"; else "$@"; fi
}

# Software version of the VMs by generation (cloud.google.com/tpu/docs/runtimes; of TPU7x, which
# has two cores a chip, Ironwood/Ironwood_Microbenchmarks_readme.md of Google's repository
# AI-Hypercomputer/accelerator-microbenchmarks).
runtime_of() {
  case $1 in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    v4-*) echo tpu-ubuntu2204-base ;;
    tpu7x-*) echo v2-alpha-tpu7-ubuntu2404 ;;
    *) fail "--type must be v4-N, v5litepod-N, v5p-N, v6e-N or tpu7x-N, got '$1'" ;;
  esac
}

queued() {
  local verb=$1
  shift
  run gcloud compute tpus queued-resources "$verb" "$name" "${place[@]}" "$@"
}

on_workers() {
  local which=$1 command=$2
  run gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker="$which" --command="$command"
}

# The state of the request: WAITING_FOR_RESOURCES, ACTIVE, SUSPENDED, ...; empty if there is none.
state() {
  gcloud compute tpus queued-resources describe "$name" "${place[@]}" \
    --format='value(state.state)' 2>/dev/null || true
}

create() {
  [[ -n $type ]] || fail "--type must be an accelerator type, got none"
  local version options=()
  version=${runtime:-$(runtime_of "$type")}
  if $spot; then options+=(--spot); fi
  queued create --node-id="$name" --accelerator-type="$type" --runtime-version="$version" \
    "${options[@]}"
  if $dry_run; then
    queued describe --format='value(state.state)'
    return
  fi
  local now
  while now=$(state) && [[ $now != ACTIVE ]]; do
    case $now in
      FAILED | SUSPENDED) fail "the request must become ACTIVE, got $now; delete it and try again" ;;
    esac
    sleep "$every"
  done
}

# The package to install: that of --package, which is kept; else the kept one; else the released.
choose_package() {
  if [[ -z $package ]]; then
    package='rmas_jax[tpu,storage]'
    if [[ -f $kept/package ]]; then package=$(<"$kept/package"); fi
  elif ! $dry_run; then
    mkdir -p "$kept"
    if [[ $package == *.whl ]]; then
      cp "$package" "$kept" # a later build does not change it
      package=$kept/$(basename "$package")
    fi
    echo "$package" >"$kept/package"
  fi
}

setup() {
  local spec=$package
  if [[ $package == *.whl ]]; then
    run gcloud compute tpus tpu-vm scp "$package" "$name:" "${place[@]}" --worker=all
    spec="$(basename "$package")[tpu,storage]"
  fi
  # uv brings a Python of its own; pip of Ubuntu 24.04 refuses to install beside the system's.
  on_workers all "PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --user --quiet uv \
&& ~/.local/bin/uv venv --quiet --clear --python 3.12 ~/rmas \
&& ~/.local/bin/uv pip install --quiet --python ~/rmas/bin/python $(show "$spec")"
}

# Commands that set the variables of the run.
environment() {
  local variable value
  for variable in "${variables[@]}"; do
    if $dry_run; then value='[not shown]'; else value=$(show "${!variable}"); fi
    printf 'export %s=%s; ' "$variable" "$value"
  done
}

start() {
  ((${#arguments[@]})) || fail "run must have arguments of rmas run after --, got none"
  local job
  job="\$HOME/rmas/bin/rmas run --distributed $(show "${arguments[@]}") >> ~/rmas.log 2>&1; \
echo \$? > ~/rmas.code"
  # A process of the run before may still be there, and hold the chips.
  on_workers all "$(environment)kill -9 -- -\$(cat ~/rmas.pid 2>/dev/null) 2>/dev/null; rm -f ~/rmas.code; \
setsid nohup sh -c $(show "$job") < /dev/null > /dev/null 2>&1 & echo \$! > ~/rmas.pid"
}

follow() {
  on_workers "$worker" 'tail -n +1 -F ~/rmas.log'
}

resume() {
  if $dry_run; then
    echo "# every $every s, until the run ends with 0, 2 or 3:"
    queued describe --format='value(state.state)'
    on_workers 0 "$look"
    echo "# ACTIVE, and the run has ended with another code or was lost:"
    start
    echo "# preempted (SUSPENDED), FAILED or deleted:"
    queued delete --force --quiet
    create
    setup
    start
    return
  fi
  local code
  while true; do
    case $(state) in
      ACTIVE)
        code=$(on_workers 0 "$look" || echo unreachable)
        case $code in
          running | unreachable) ;;
          0 | 2 | 3)
            echo "the run has ended with $code"
            return "$code"
            ;;
          *) start ;;
        esac
        ;;
      SUSPENDED | FAILED | '')
        queued delete --force --quiet || true
        create
        setup
        start
        ;;
    esac
    sleep "$every"
  done
}

delete() {
  queued delete --force --quiet
  if ! $dry_run; then rm -rf "$kept"; fi
}

(($#)) || { usage >&2 && exit 2; }
command=$1
shift
case $command in
  --help) usage && exit 0 ;;
  create | setup | resume | delete) action=$command ;;
  run) action=start ;;
  tail) action=follow ;;
  *) fail "the command must be create, setup, run, tail, resume or delete, got '$command'" ;;
esac
parse "$@"
[[ -n $name ]] || fail "--name must be given"
[[ -n $zone ]] || fail "--zone must be given"
place=(--zone="$zone")
if [[ -n $project ]]; then place+=(--project="$project"); fi
for variable in "${variables[@]}"; do
  [[ $variable =~ ^[A-Za-z_][A-Za-z0-9_]*$ && -n ${!variable+set} ]] ||
    fail "--env must name a variable of this shell's environment, got '$variable'"
  export CLOUDSDK_CORE_DISABLE_FILE_LOGGING=true # gcloud's log has the arguments of its calls
done
kept=${XDG_STATE_HOME:-$HOME/.local/state}/rmas_jax/slices/${project:-default}/$zone/$name
case $action in setup | resume) choose_package ;; esac
"$action"
