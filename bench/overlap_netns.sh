#!/usr/bin/env bash
# Two ranks with a slow link between them, on one machine: two network namespaces joined by a veth pair that `tc tbf` holds to RATE, Open MPI
# over TCP between them, one rank in each. Prints whatever the program prints. Needs root, iproute2 and openmpi-bin; touches only the
# namespaces that it makes, and removes them. The ranks' sessions get the scheduler's largest weight: other work on the machine has what they leave.
#   bench/overlap_netns.sh RATE PROGRAM [ARGUMENTS...]      RATE as tc writes it: 100mbit, 1gbit; "none" leaves the link alone
#   bench/overlap_netns.sh 1gbit build/release/bench/comm_bench --bytes 4194304
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
rate=$1; shift
tag=orr$$
near=${tag}a far=${tag}b
work=$(mktemp -d)
cleanup() {
  for ns in "$near" "$far"; do
    # Whatever still runs in a namespace of ours was started by us.
    for pid in $(ip netns pids "$ns" 2>/dev/null); do kill -9 "$pid" 2>/dev/null || true; done
    ip netns del "$ns" 2>/dev/null || true
  done
  rm -rf "$work"
}
trap cleanup EXIT

ip netns add "$near"; ip netns add "$far"
ip link add name "${tag}v" netns "$near" type veth peer name "${tag}w" netns "$far"
ip -n "$near" addr add 10.213.7.1/30 dev "${tag}v"; ip -n "$far" addr add 10.213.7.2/30 dev "${tag}w"
for side in "$near v" "$far w"; do
  read -r ns end <<<"$side"
  ip -n "$ns" link set lo up; ip -n "$ns" link set "$tag$end" up
  # Both directions; a burst of 128 KiB is less than one segment of a sum.
  [ "$rate" = none ] || ip netns exec "$ns" tc qdisc add dev "$tag$end" root tbf rate "$rate" burst 128kb latency 100ms
done

# What mpirun runs in place of ssh: the second argument onward, in the other namespace and under another host name, because Open MPI tells
# nodes apart by it.
cat > "$work/agent" <<AGENT
#!/bin/sh
shift
exec ip netns exec $far unshare --uts sh -c "hostname far && \$*"
AGENT
# Sessions compete as wholes, where the kernel groups them, so that a process's own nice value says little.
cat > "$work/rank" <<'RANK'
#!/bin/sh
[ -w /proc/self/autogroup ] && echo -19 > /proc/self/autogroup
exec "$@"
RANK
chmod +x "$work/agent" "$work/rank"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
ip netns exec "$near" unshare --uts sh -c 'hostname near && exec "$@"' sh \
  timeout "${TIMEOUT_S:-240}" mpirun.openmpi --host 10.213.7.1:1,10.213.7.2:1 -n 2 --bind-to none \
  --mca plm_rsh_agent "$work/agent" --mca pml ob1 --mca btl tcp,self \
  --mca btl_tcp_if_include 10.213.7.0/30 --mca oob_tcp_if_include 10.213.7.0/30 -x ORRERY_MPI_PLUGIN_DIR "$work/rank" "$@"
