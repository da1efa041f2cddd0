# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# The part of a job script that keeps a run going: starts it, waits, and decides what comes next.
#
# The lines before this set, as shell variables:
#   run            folder of the run                command        array: what each process runs
#   srun_options   array: further options of srun   script         this script (and its arguments), to
#                                                                  submit it again
#   next_job       requeue | chain                  save_within    seconds that a save may take
#   fruitless_attempts, node_failures               limits, see slurm/cluster.py
#
# Written are, in $run/slurm: attempts.jsonl (a line when an attempt starts and one when it ends),
# failed_nodes (a line a failure), fruitless (attempts without progress, and the step they began at);
# in $run/logs: attempt_NNN with the output of each rank. What is decided is printed, one line each.

records=$run/slurm
mkdir -p "$records"
[[ -e $records/attempts.jsonl ]] || : >"$records/attempts.jsonl"
asked=''    # why Slurm or a person wants this job to stop, once it does
ending=''   # set when Slurm is about to end this job whatever we do
timer=''

say() { printf '%s %s\n' "$(date -u +%FT%TZ)" "$*"; }

record() { printf '{"time": %s, "job": "%s", %s}\n' "$(date +%s.%N)" "$SLURM_JOB_ID" "$1" >>"$records/attempts.jsonl"; }

# Step of the newest complete checkpoint; 0 without one.
saved_step() {
    local manifest step newest=0
    for manifest in "$run"/checkpoints/step_*/manifest.json; do
        [[ -e $manifest ]] || continue
        manifest=${manifest%/manifest.json}
        step=$((10#${manifest##*/step_}))
        ((step > newest)) && newest=$step
    done
    echo "$newest"
}

# USR1 comes to this shell alone. The ranks save at the end of the step; if that takes too long they
# are ended, and the checkpoint before is used: a job that runs into its limit is not requeued.
on_ask() {
    interrupted=1
    [[ -n $asked ]] && return
    asked='Slurm asked this job to stop: its time limit is near, or another job needs the nodes'
    [[ -e $records/stop ]] && asked='asked to stop by python -m slurm cancel'
    say "$asked; the ranks save and stop"
    tell_ranks USR1
    (sleep "$save_within" && say "not saved within $save_within s: the ranks are ended" && end_ranks) &
    timer=$!
}

on_end() {
    interrupted=1
    ending='Slurm ends this job'
    say "$ending"
}

# Signals the processes of the job, not this shell. A busy controller is asked again.
tell_ranks() {
    local attempt
    for attempt in 1 2 3; do
        timeout 30 scancel --signal="$1" "$SLURM_JOB_ID" && return
        sleep "$attempt"
    done
}

# Ends the processes of the job. (scancel --signal=KILL of a job would cancel the job itself.)
end_ranks() {
    local step
    for step in $(timeout 30 squeue --noheader --steps --jobs="$SLURM_JOB_ID" --format=%i | grep -E '[.][0-9]+$'); do
        timeout 30 scancel "$step"
    done
}

# Runs one attempt and sets `code`, the largest exit code of a rank, and `causes`, those of all.
launch() {
    local child
    srun --kill-on-bad-exit=1 --output="$logs/rank_%4t.log" --open-mode=append \
        "${srun_options[@]}" bash -c '
        export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
        exits=$1; shift
        # Slurm may signal this shell alone: it passes on what asks to save and end.
        pass_on() { interrupted=1; kill -"$1" "$process" 2>/dev/null; }
        trap "pass_on USR1" USR1
        trap "pass_on TERM" TERM
        "$@" &
        process=$!
        while interrupted=; wait "$process"; code=$?; [[ $interrupted ]]; do :; done
        [[ $code == 0 ]] || echo "$code ${SLURMD_NODENAME:-?}" >"$exits/$RANK"
        exit "$code"
    ' rank "$logs/exits" "${command[@]}" &
    child=$!
    while
        interrupted=''
        wait "$child"
        code=$?
        [[ -n $interrupted ]]
    do :; done
    [[ -n $timer ]] && kill "$timer" 2>/dev/null
    timer=''
    causes=" $(cat "$logs"/exits/* 2>/dev/null | cut -d' ' -f1 | sort -u | tr '\n' ' ')"
}

# Nodes of this attempt whose processes died by a signal of their own, or that the watch over the
# ranks holds responsible. A TERM is srun's, after another rank has failed.
failed_nodes() {
    {
        cat "$logs"/exits/* 2>/dev/null | awk '$1 > 128 && $1 != 130 && $1 != 138 && $1 != 143 {print $2}'
        cut -d. -f1 "$logs/faults/hosts" 2>/dev/null
    } | sort -u
}

# Nodes of a job that Slurm ended which are down, or whose daemon was started since.
lost_nodes() {
    local nodes=$1 since=$2 node state started
    timeout 30 scontrol show node -o "$nodes" 2>/dev/null | while read -r line; do
        node=${line#NodeName=} node=${node%% *}
        state=${line#* State=} state=${state%% *}
        started=${line#* SlurmdStartTime=} started=$(date -d "${started%% *}" +%s 2>/dev/null || echo 0)
        [[ $state =~ DOWN|FAIL|NOT_RESPONDING || $started -gt $since ]] && echo "$node"
    done
}

blame() {
    local node
    for node in "$@"; do
        echo "$node $(date +%s) $SLURM_JOB_ID $attempt" >>"$records/failed_nodes"
        say "node $node failed ($(grep -c "^$node " "$records/failed_nodes") in all)"
    done
}

# Nodes to be avoided, separated by commas.
avoided() {
    ((node_failures)) && [[ -e $records/failed_nodes ]] || return 0
    cut -d' ' -f1 "$records/failed_nodes" | sort | uniq -c | awk -v n="$node_failures" '$1 >= n {print $2}' | paste -sd,
}

# Submits this script again, to start when this job has ended; what Slurm set for this job is not
# passed on.
chain() {
    local unset=() name successor
    while read -r name; do [[ $name == SLURM_CONF ]] || unset+=(-u "$name"); done < <(compgen -e | grep -E '^(SLURM|SRUN|SBATCH)_')
    successor=$(timeout 60 env "${unset[@]}" sbatch --parsable --dependency="afterany:$SLURM_JOB_ID" "$@" "${script[@]}") || return 1
    printf '{"time": %s, "job": "%s", "via": "chain"}\n' "$(date +%s.%N)" "$successor" >>"$records/jobs.jsonl"
    say "job $successor goes on after this one"
}

# Ends this job so that the run goes on in the next one.
go_on_later() {
    local turn
    for turn in 1 2 3 4 5; do
        if [[ $next_job == requeue ]]; then
            say 'this job is requeued'
            timeout 60 scontrol requeue "$SLURM_JOB_ID" && { sleep 600 & wait "$!"; exit 75; }
        else
            chain && exit 0
        fi
        sleep $((turn * 2))
    done
    say 'Slurm does not take the job again; resume it: python -m slurm resume '"$run"
    exit 1
}

# Leaves nodes that have failed too often, if there are others.
leave_bad_nodes() {
    local bad here
    bad=$(avoided)
    [[ -n $bad ]] || return 0
    here=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | grep -Fx "$(tr ',' '\n' <<<"$bad")" | paste -sd,)
    [[ -n $here ]] || return 0
    if timeout 60 sbatch --test-only --exclude="$bad" "${script[@]}" >/dev/null 2>&1 && chain --exclude="$bad"; then
        say "leaving $here: failed $node_failures times or more"
        exit 0
    fi
    say "$here failed $node_failures times or more, but there are not enough other nodes: going on"
}

# Notes the end of an attempt that Slurm has ended together with its script.
close_interrupted() {
    local last nodes since
    last=$(tail -n 1 "$records/attempts.jsonl")
    [[ $last == *'"event": "started"'* ]] || return 0
    attempt=${last#*\"attempt\": } attempt=${attempt%%,*}
    nodes=${last#*\"nodes\": \"} nodes=${nodes%%\"*}
    since=${last#*\"time\": } since=${since%%.*}
    record "\"event\": \"ended\", \"attempt\": $attempt, \"code\": null, \"saved_step\": $(saved_step), \"cause\": \"ended by Slurm\""
    # shellcheck disable=SC2046  # one word a node
    blame $(lost_nodes "$nodes" "$since")
}

# Counts attempts that fail without a new checkpoint; gives up when there are too many.
require_progress() {
    local now
    now=$(saved_step)
    ((now > fruitless_step)) && fruitless=0
    fruitless=$((fruitless + 1)) fruitless_step=$now
    echo "$fruitless $now" >"$records/fruitless"
    if ((fruitless >= fruitless_attempts)); then
        say "giving up: $fruitless attempts in a row failed without a new checkpoint (step $now); $1. See $logs"
        exit "$((code > 0 ? code : 1))"
    fi
    ((fruitless == 1)) || sleep $((5 * (fruitless - 1)))
    # An attempt on a node that was lost may still be ending; its ranks notice that within 30 s.
    [[ $causes =~ ' '10' ' ]] && sleep 30
    return 0
}

# Says in one phrase why an attempt ended; sets `cause`.
explain() {
    # Ranks end with 75 only together, after the save; srun TERMs those that are slower to leave.
    [[ $code == 143 && $causes =~ ' '75' ' ]] && code=75
    case $code in
        0) cause='complete' ;;
        75) cause='stopped and saved' ;;
        *) cause="exit code $code" ;;
    esac
    [[ $causes =~ ' '(2|3|6|9)' ' ]] && cause="an error that a restart does not repair (exit code ${BASH_REMATCH[1]})"
    if [[ -e $run/faults ]]; then
        mv "$run/faults" "$logs/faults"
        cat "$logs"/faults/rank_*.txt >"$logs/stacks.log" 2>/dev/null
    fi
    return 0
}

trap on_ask USR1
trap on_end TERM
read -r fruitless fruitless_step < <(cat "$records/fruitless" 2>/dev/null || echo '0 -1')
close_interrupted
while :; do
    [[ -n $ending ]] && exit 75
    [[ -e $records/stop ]] && say 'stopped; python -m slurm resume goes on' && exit 0
    [[ -n $asked ]] && go_on_later
    leave_bad_nodes

    attempt=1
    while [[ -e $run/logs/attempt_$(printf %03d "$attempt") ]]; do attempt=$((attempt + 1)); done
    logs=$run/logs/attempt_$(printf %03d "$attempt")
    mkdir -p "$logs/exits"
    ln -sfn "$(basename "$logs")" "$run/logs/latest"
    MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    MASTER_PORT=$((20000 + (SLURM_JOB_ID * 97 + attempt) % 12000))
    export MASTER_ADDR MASTER_PORT
    say "attempt $attempt on $SLURM_JOB_NODELIST from step $(saved_step), logs in $logs"
    record "\"event\": \"started\", \"attempt\": $attempt, \"nodes\": \"$SLURM_JOB_NODELIST\", \"restart\": ${SLURM_RESTART_COUNT:-0}, \"saved_step\": $(saved_step)"
    launch
    explain
    record "\"event\": \"ended\", \"attempt\": $attempt, \"code\": $code, \"saved_step\": $(saved_step), \"cause\": \"$cause\""
    say "attempt $attempt ended: $cause; newest checkpoint at step $(saved_step)"

    [[ $code == 0 ]] && exit 0
    if [[ $causes =~ ' '(2|3|6|9)' ' ]]; then
        grep -h '^error' "$logs"/rank_*.log | sort -u | head -n 5
        say 'giving up: the run needs another configuration; correct it and submit it again'
        exit "${BASH_REMATCH[1]}"
    fi
    [[ $code == 75 && -z $asked ]] && asked='a rank was asked to stop'
    [[ -n $asked || -n $ending ]] && continue
    grep -h '^error' "$logs"/rank_*.log | sort -u | head -n 5
    # shellcheck disable=SC2046  # one word a node
    blame $(failed_nodes)
    require_progress "$cause"
done
