#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Install (if absent) and start a REAL Slurm (munge + slurmctld + N slurmd) on one
# Debian 12 machine, as root, with no systemd. Idempotent: run again = no-op when healthy,
# repair when partly down. Everything lives under one folder; nothing in /etc is changed.
#
#   start_slurm.sh [-n NODES] [-g GPUS_PER_NODE] [-c CPUS_PER_NODE] [-d DIR] [--netns]
#                  [--accounting] [--fresh]
#   start_slurm.sh stop [-d DIR]
#   start_slurm.sh install         the packages, and nothing else
#
# --netns       each node gets its own network namespace (own IP, own hostname, own /etc/hosts);
#               without it the nodes share the network (NodeAddr 127.0.0.1, one port each), and
#               get only their own hostname and /etc/hosts (UTS + mount namespace).
# --accounting  also mariadbd + slurmdbd, so that sacct works (needed for submitit's job.state)
# --fresh       stop what runs and forget all jobs first
set -euo pipefail
NODES=2 GPUS=8 CPUS=128 DIR=/tmp/slurm-test NETNS=0 ACCT=0 FRESH=0 CMD=start
while [ $# -gt 0 ]; do case $1 in
  stop) CMD=stop;; install) CMD=install NETNS=1;; -n) NODES=$2; shift;; -g) GPUS=$2; shift;; -c) CPUS=$2; shift;; -d) DIR=$2; shift;;
  --netns) NETNS=1;; --accounting) ACCT=1;; --fresh) FRESH=1;;
  *) sed -n '3,16p' "$0"; exit 2;; esac; shift; done
[ "$(id -u)" = 0 ] || { echo "needs root" >&2; exit 1; }
mkdir -p "$DIR"; DIR=$(cd "$DIR" && pwd); ETC=$DIR/etc; SOCK=$DIR/munge/munge.socket
BR=slurmbr0 NET=10.199.77                        # only used by --netns
say() { echo "[start_slurm] $*"; }
alive() { # alive PIDFILE NAME : a live, non-zombie process of that name owns the pid file
  local p; [ -s "$1" ] && p=$(cat "$1" 2>/dev/null) && [ -n "$p" ] && [ -r "/proc/$p/stat" ] || return 1
  grep -q "^Name:.*$2" "/proc/$p/status" && ! grep -q '^State:.*Z' "/proc/$p/status"; }
wait_for() { # wait_for SECONDS WHAT CMD...
  local end=$((SECONDS + $1)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || { echo "timed out: $what; logs in $DIR/log" >&2; return 1; }; sleep 0.1; done; }
end_pid() { # end_pid PIDFILE NAME : TERM by pid, wait, then KILL by pid
  local p i; alive "$1" "$2" || { rm -f "$1"; return 0; }; p=$(cat "$1" 2>/dev/null) || return 0; kill "$p" 2>/dev/null || true
  for i in $(seq 150); do alive "$1" "$2" || { rm -f "$1"; return 0; }; sleep 0.1; done
  kill -9 "$p" 2>/dev/null || true; rm -f "$1"; }
stop_all() {
  local f n p k s
  if [ -f "$ETC/slurm.conf" ] && alive "$DIR/slurmctld.pid" slurmctld; then
    SLURM_CONF=$ETC/slurm.conf timeout 10 bash -c 'squeue -h -o %A | sort -u | xargs -r scancel -f' 2>/dev/null || true
    for k in $(seq 40); do SLURM_CONF=$ETC/slurm.conf timeout 5 squeue -h -t R,CG,S 2>/dev/null | grep -q . || break; sleep 0.1; done
  fi
  for f in "$DIR"/slurmd-*.pid; do [ -e "$f" ] && end_pid "$f" slurmd; done
  # a killed slurmd leaves its job steps (slurmstepd) running: end those of this folder, by pid
  for s in /proc/[0-9]*; do p=${s#/proc/}
    { grep -q '^Name:.*slurmstepd' "$s/status" && tr '\0' '\n' <"$s/environ" | grep -qx "SLURM_CONF=$ETC/slurm.conf" && kill -9 "$p"; } 2>/dev/null || true; done
  end_pid "$DIR/slurmctld.pid" slurmctld; end_pid "$DIR/slurmdbd.pid" slurmdbd
  end_pid "$DIR/db/mariadbd.pid" mariadbd; end_pid "$DIR/munge/munged.pid" munged
  if [ -e "$DIR/netns" ]; then  # this Slurm's own: another one on this machine may have some too
    for n in $(ip netns list 2>/dev/null | awk '/^slurm-node/{print $1}'); do ip netns del "$n"; done
    ip link del $BR 2>/dev/null || true; rm -f "$DIR/netns"
  fi
  find /sys/fs/cgroup/freezer -depth -path '/sys/fs/cgroup/freezer/slurm_node*' -type d -exec rmdir {} + 2>/dev/null || true; say "stopped ($DIR)"; }
if [ $CMD = stop ]; then stop_all; exit 0; fi
[ $FRESH = 1 ] && { stop_all; rm -rf "$DIR/state" "$DIR/spool" "$DIR/log" "$DIR/db"; }

# ---- 1. packages -------------------------------------------------------------------------
installed() { [ "$(dpkg-query -W -f="\${db:Status-Status}" "$1" 2>/dev/null)" = installed ]; }
need=(); for p in slurmctld slurmd slurm-client munge; do installed $p || need+=($p); done
[ $NETNS = 1 ] && ! command -v ip >/dev/null && need+=(iproute2)
[ $ACCT = 1 ] && for p in slurmdbd mariadb-server; do installed $p || need+=($p); done
if [ ${#need[@]} -gt 0 ]; then
  say "installing ${need[*]}"; export DEBIAN_FRONTEND=noninteractive
  for i in 1 2 3 4 5 6; do apt-get update -qq && break; sleep 5; done   # another apt may hold the lists lock
  apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=300 "${need[@]}" >"$DIR/apt.log" 2>&1 || { tail -20 "$DIR/apt.log" >&2; exit 1; }
fi
[ $CMD = install ] && exit 0

# ---- 2. config ---------------------------------------------------------------------------
mkdir -p "$ETC" "$DIR/log" "$DIR/state" "$DIR/munge"; chmod 755 "$DIR" "$DIR/munge"
[ -f "$DIR/munge/munge.key" ] || { (umask 077; head -c 1024 /dev/urandom >"$DIR/munge/munge.key"); }
ADDR=127.0.0.1; [ $NETNS = 1 ] && ADDR=$NET.1
# proctrack/cgroup, as real clusters have, wherever a cgroup v1 freezer is writable: it ends every process
# of a step. linuxproc follows parents only: a process whose parent died escapes scancel and lives on.
TRACK=proctrack/linuxproc; rm -f "$ETC/cgroup.conf"
if [ -w /sys/fs/cgroup/freezer ] && [ -z "${SLURM_TEST_NO_CGROUP:-}" ]; then TRACK=proctrack/cgroup
  printf '%s\n' CgroupPlugin=cgroup/v1 CgroupAutomount=no CgroupMountpoint=/sys/fs/cgroup >"$ETC/cgroup.conf"; fi
{
cat <<CONF
ClusterName=test
SlurmctldHost=localhost($ADDR)
SlurmctldPort=26817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# cred_expire also sets how long a requeued job waits before it may start: 120 s if unset, 5 is the least taken
AuthInfo=socket=$SOCK,cred_expire=5
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool/%n
SlurmctldPidFile=$DIR/slurmctld.pid
SlurmdPidFile=$DIR/slurmd-%n.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd-%n.log
MpiDefault=none
ProctrackType=$TRACK
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=5
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=1000
SlurmdParameters=config_overrides
GresTypes=gpu
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=${SLURM_TEST_SLURMD_TIMEOUT:-15}
MessageTimeout=20
KillWait=5
KillOnBadExit=0
UnkillableStepTimeout=30
JobRequeue=1
MinJobAge=86400
CONF
if [ $ACCT = 1 ]; then cat <<CONF
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=26819
AccountingStoragePass=$SOCK
AccountingStorageTRES=gres/gpu
CONF
else echo JobCompType=jobcomp/filetxt; echo "JobCompLoc=$DIR/log/jobcomp.log"; fi
for i in $(seq "$NODES"); do a=127.0.0.1 port=$((27000+i)); [ $NETNS = 1 ] && { a=$NET.$((10+i)); port=27000; }
  echo "NodeName=node$i NodeHostname=node$i NodeAddr=$a Port=$port CPUs=$CPUS RealMemory=1000000 Gres=gpu:a100:$GPUS"; done
echo "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=10 GraceTime=10 State=UP"
echo "PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=20 State=UP"
} >"$ETC/slurm.conf.new"
if [ -f "$ETC/slurm.conf" ] && ! cmp -s "$ETC/slurm.conf" "$ETC/slurm.conf.new" && alive "$DIR/slurmctld.pid" slurmctld; then say "config changed: restarting"; stop_all; fi
mv "$ETC/slurm.conf.new" "$ETC/slurm.conf"; rm -f "$ETC/gres.conf"
if [ "$GPUS" -gt 0 ]; then
  # one device file per fake GPU; a plain file works too (slurmd logs an error, counts it all the same)
  for i in $(seq 0 $((GPUS-1))); do [ -e "$DIR/fakegpu$i" ] || mknod "$DIR/fakegpu$i" c 1 3 2>/dev/null || : >"$DIR/fakegpu$i"; done
  last=$((GPUS-1)); [ $last = 0 ] && r=0 || r="[0-$last]"
  printf 'AutoDetect=off\nNodeName=node[1-%s] Name=gpu Type=a100 File=%s/fakegpu%s\n' "$NODES" "$DIR" "$r" >"$ETC/gres.conf"
fi
export SLURM_CONF=$ETC/slurm.conf

# ---- 3. munged ---------------------------------------------------------------------------
alive "$DIR/munge/munged.pid" munged || { rm -f "$SOCK" "$SOCK.lock"
  munged --num-threads=4 --key-file="$DIR/munge/munge.key" --socket="$SOCK" --pid-file="$DIR/munge/munged.pid" --log-file="$DIR/munge/munged.log" --seed-file="$DIR/munge/munged.seed"; }
wait_for 10 munge bash -c "munge -n -S $SOCK | unmunge -S $SOCK"

# ---- 4. accounting (optional) --------------------------------------------------------------
if [ $ACCT = 1 ]; then
  mkdir -p "$DIR/db"; chown mysql "$DIR/db"
  cat >"$ETC/my.cnf" <<CONF
[mariadbd]
user=mysql
datadir=$DIR/db/data
socket=$DIR/db/mysqld.sock
pid-file=$DIR/db/mariadbd.pid
log-error=$DIR/db/error.log
port=23306
bind-address=127.0.0.1
innodb_buffer_pool_size=64M
innodb_log_file_size=16M
innodb_lock_wait_timeout=900
innodb_flush_log_at_trx_commit=0
skip-name-resolve
CONF
  [ -d "$DIR/db/data/mysql" ] || mariadb-install-db --defaults-file="$ETC/my.cnf" --user=mysql --auth-root-authentication-method=socket --skip-test-db >"$DIR/log/db-install.log" 2>&1
  alive "$DIR/db/mariadbd.pid" mariadbd || setsid --fork mariadbd --defaults-file="$ETC/my.cnf" </dev/null >/dev/null 2>&1
  wait_for 30 mariadbd mariadb-admin --no-defaults --socket="$DIR/db/mysqld.sock" ping
  mariadb --no-defaults --socket="$DIR/db/mysqld.sock" -e "create database if not exists slurm_acct_db; create user if not exists 'slurm'@'127.0.0.1' identified by 'slurmpw'; grant all on slurm_acct_db.* to 'slurm'@'127.0.0.1'"
  (umask 077; cat >"$ETC/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=socket=$SOCK
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=26819
SlurmUser=root
PidFile=$DIR/slurmdbd.pid
LogFile=$DIR/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=23306
StorageUser=slurm
StoragePass=slurmpw
StorageLoc=slurm_acct_db
CONF
  )
  alive "$DIR/slurmdbd.pid" slurmdbd || slurmdbd
  wait_for 30 slurmdbd timeout 5 sacctmgr -n show cluster
  [ -n "$(sacctmgr -nP show cluster test)" ] || sacctmgr -i add cluster test >/dev/null   # before slurmctld, or it dies with "no TRES"
fi

# ---- 5. slurmctld, then the nodes ------------------------------------------------------------
[ $NETNS = 0 ] || : >"$DIR/netns"
if [ $NETNS = 1 ] && ! ip link show $BR >/dev/null 2>&1; then
  ip link add $BR type bridge; ip addr add $NET.1/24 dev $BR; ip link set $BR up; fi
alive "$DIR/slurmctld.pid" slurmctld || slurmctld
hosts() { echo "127.0.0.1 localhost"; echo "$ADDR $(hostname)"; for j in $(seq "$NODES"); do [ $NETNS = 1 ] && echo "$NET.$((10+j)) node$j" || echo "127.0.0.1 node$j"; done; }
hosts >"$ETC/hosts"
for i in $(seq "$NODES"); do
  mkdir -p "$DIR/spool/node$i"
  alive "$DIR/slurmd-node$i.pid" slurmd && continue
  inner="hostname node$i; exec slurmd -N node$i"
  if [ $NETNS = 1 ]; then ns=slurm-node$i
    if ! ip netns list | grep -qw $ns; then
      ip netns add $ns; ip link add sv$i type veth peer name eth0 netns $ns; ip link set sv$i master $BR up
      ip -n $ns addr add $NET.$((10+i))/24 dev eth0; ip -n $ns link set eth0 up; ip -n $ns link set lo up
    fi
    # nsenter, not `ip netns exec`: that one remounts /sys without /sys/fs/cgroup, and slurmd then ends
    nsenter --net=/run/netns/$ns unshare --uts --mount bash -c "mount --bind $ETC/hosts /etc/hosts; $inner"
  else
    unshare --uts --mount bash -c "mount --bind $ETC/hosts /etc/hosts; $inner"
  fi
done
states() { timeout 5 sinfo -h -N -p main -o '%N %t' | sort -u; }
up=0   # a node is up when it answers: idle, or busy with a job that outlived a restart
for k in $(seq 300); do
  [ "$(states | grep -cE ' (idle|mix|alloc|comp)$')" = "$NODES" ] && { up=1; break; }
  for n in $(states | awk '$2~/^(down|drain|drng|inval)\*?$/{print $1}'); do scontrol update nodename=$n state=resume 2>/dev/null || true; done
  sleep 0.1
done
[ $up = 1 ] || { echo "nodes did not come up" >&2; sinfo -R; tail -n 8 "$DIR"/log/slurmctld.log "$DIR"/log/slurmd-*.log >&2; exit 1; }
cat >"$DIR/env.sh" <<CONF
export SLURM_CONF=$SLURM_CONF
CONF
say "up: $(slurmctld -V), $NODES node(s) x $GPUS fake GPU(s), $( [ $NETNS = 1 ] && echo 'own network namespaces' || echo 'shared network')"
sinfo
say "use:  . $DIR/env.sh && srun -N$NODES hostname"
say "stop: $(cd "$(dirname "$0")" && pwd)/$(basename "$0") stop -d $DIR"
