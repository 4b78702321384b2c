#!/usr/bin/env bash
# A Kubernetes node with its control plane, in mount, network, UTS and PID namespaces of its own:
#
#   node.sh up                    starts it; returns when the node is Ready
#   node.sh down                  stops it and removes its cgroups
#   node.sh exec COMMAND...       runs a command in its namespaces, with kubectl, helm and KUBECONFIG set
#   node.sh restart DAEMON        ends containerd or kubelet by SIGKILL, and starts it again; pods run on
#
# NODE_DIR is where it keeps everything: on a real disk, and not below /etc, /opt or /var, over which it has overlays.
# PROGRAMS is the directory with hyperkube and helm. Of the machine nothing is written but NODE_DIR and one cgroup.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
home=${NODE_DIR:?}
programs=${PROGRAMS:?}
plugins=${CNI_PLUGINS:-/usr/lib/cni}
name=node
address=172.30.0.2
group=k8s-$(basename "$home")
unified=/sys/fs/cgroup
[ -e $unified/cgroup.controllers ] || unified+=/unified
daemons="etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl"

# --- What the node is made of, written before it starts.

certificate() { # NAME SUBJECT [SUBJECT_ALTERNATIVE_NAMES]
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$1.key" -subj "$2" -out "$1.csr" 2>/dev/null
    openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 3650 -out "$1.crt" -extfile <(
        printf 'keyUsage=digitalSignature,keyEncipherment\nextendedKeyUsage=serverAuth,clientAuth\n%s' "${3:+subjectAltName=$3}"
    ) 2>/dev/null
}

kubeconfig() { # NAME
    cat >"$1.conf" <<END
apiVersion: v1
kind: Config
clusters: [{name: k, cluster: {server: "https://$address:6443", certificate-authority: $home/pki/ca.crt}}]
users: [{name: u, user: {client-certificate: $home/pki/$1.crt, client-key: $home/pki/$1.key}}]
contexts: [{name: c, context: {cluster: k, user: u}}]
current-context: c
END
}

make_certificates() {
    cd "$home/pki"
    [ ! -e ca.crt ] || return 0
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -subj /CN=kubernetes -days 3650 \
        -out ca.crt 2>/dev/null
    local service=DNS:kubernetes.default.svc
    certificate server /CN=kube-apiserver \
        "IP:$address,IP:127.0.0.1,IP:10.96.0.1,DNS:kubernetes,DNS:kubernetes.default,$service,$service.cluster.local"
    certificate admin /O=system:masters/CN=admin
    certificate controllers /CN=system:kube-controller-manager
    certificate scheduler /CN=system:kube-scheduler
    certificate proxy /CN=system:kube-proxy
    certificate kubelet "/O=system:nodes/CN=system:node:$name" "DNS:$name,IP:$address"
    openssl genrsa -out sa.key 2048 2>/dev/null
    openssl rsa -in sa.key -pubout -out sa.pub 2>/dev/null
    local each
    for each in admin controllers scheduler proxy kubelet; do kubeconfig "$each"; done
}

prepare() {
    mkdir -p "$home"/{bin,pki,log,net.d,plugins,kubelet,sysctl,containerd,etcd} "$home"/work/{etc,opt,var} \
        "$home"/upper/{etc/{cni/net.d,containerd},opt/cni/bin,var/lib/kubelet}
    local each
    for each in $daemons; do ln -sf "$programs/hyperkube" "$home/bin/$each"; done
    for each in bridge host-local loopback portmap firewall tuning; do cp "$plugins/$each" "$home/plugins/"; done
    # What the kubelet wants of the machine's sysctls, in files that are bound over them: it then writes none.
    echo 1 >"$home/sysctl/overcommit_memory"
    echo 10 >"$home/sysctl/panic"
    echo 1 >"$home/sysctl/panic_on_oops"
    make_certificates
    sed "s|@HOME@|$home|g" "$here/containerd.toml" >"$home/upper/etc/containerd/config.toml"
    [ -e "$home/net.d/10-bridge.conflist" ] || cat >"$home/net.d/10-bridge.conflist" <<END
{
  "cniVersion": "0.4.0",
  "name": "bridge",
  "plugins": [
    {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
     "ipam": {"type": "host-local", "dataDir": "/run/cni-ipam",
              "ranges": [[{"subnet": "10.244.0.0/24"}], [{"subnet": "fd44::/64"}]],
              "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
END
    : >"$home/resolv.conf"
    cat >"$home/kubelet.yaml" <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: /$group
failCgroupV1: false
failSwapOn: false
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: $home/pki/ca.crt}
authorization: {mode: Webhook}
tlsCertFile: $home/pki/kubelet.crt
tlsPrivateKeyFile: $home/pki/kubelet.key
clusterDomain: cluster.local
clusterDNS: [10.96.0.10]
resolvConf: $home/resolv.conf
registerNode: true
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}
enforceNodeAllocatable: [pods]
serializeImagePulls: false
syncFrequency: 2s
nodeStatusUpdateFrequency: 1s
END
    # Connection tracking's settings are the machine's.
    cat >"$home/proxy.yaml" <<END
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
clientConnection: {kubeconfig: $home/pki/proxy.conf}
clusterCIDR: 10.244.0.0/16,fd44::/64
hostnameOverride: $name
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
END
}

make_cgroups() { # The kubelet wants its root to exist, in every hierarchy.
    local each
    # All that is not a pod is in a cgroup below, so that eBPF programs of this node see nothing of the machine.
    mkdir -p "$unified/$group/system"
    if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
        mkdir -p "/sys/fs/cgroup/$group"
        for each in cpu cpuset memory pids; do echo "+$each" >/sys/fs/cgroup/cgroup.subtree_control; done
        return
    fi
    for each in /sys/fs/cgroup/*/; do [ "${each%unified/}" != "$each" ] || mkdir -p "$each$group"; done
    for each in cpus mems; do cat "/sys/fs/cgroup/cpuset/cpuset.$each" >"/sys/fs/cgroup/cpuset/$group/cpuset.$each"; done
}

# --- The first process in the node's namespaces.

started=
declare -A processes
start() { # NAME COMMAND...
    local log=$home/log/$1 daemon=$1
    shift
    "$@" >>"$log" 2>&1 &
    processes[$daemon]=$!
    started="$! $started"
}

wait_for() { # WHAT COMMAND...
    local what=$1 try
    shift
    for try in $(seq 1200); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.1
    done
    echo "not ready after $((try / 10)) s: $what; the logs are in $home/log" >&2
    return 1
}

kubectl() { KUBECACHEDIR="$home/cache" "$home/bin/kubectl" --kubeconfig "$home/pki/admin.conf" "$@"; }

mount_everything() {
    local each
    mount -t proc proc /proc
    mount --make-rshared /
    for each in etc opt var; do
        mount -t overlay overlay -o "lowerdir=/$each,upperdir=$home/upper/$each,workdir=$home/work/$each" "/$each"
    done
    mount --bind "$home/net.d" /etc/cni/net.d
    mount --bind "$home/plugins" /opt/cni/bin
    # On a disk and no overlay: pods in user namespaces need mapped mounts.
    mount --bind "$home/kubelet" /var/lib/kubelet
    mount -t tmpfs -o mode=755 tmpfs /run
    mount -t tmpfs tmpfs /var/log
    mkdir -p /run/netns /run/lock /var/log/pods
    # The node's own: what is pinned there goes with it.
    mount -t bpf -o mode=700 bpf /sys/fs/bpf
}

make_network() {
    hostname "$name"
    ip link set lo up
    # Both ends are here: nothing leads out.
    ip link add eth0 type veth peer name uplink
    ip link set uplink up
    ip addr add "$address/24" dev eth0
    ip addr add fd30::2/64 dev eth0 nodad
    ip link set eth0 up
    ip route add default via 172.30.0.1 dev eth0
    sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=0
}

start_control_plane() {
    local pki=$home/pki
    start etcd "$home/bin/etcd" --data-dir="$home/etcd" --unsafe-no-fsync --listen-peer-urls=http://127.0.0.1:2380 --log-level=warn
    # shellcheck disable=SC2086 # further flags are words
    start kube-apiserver "$home/bin/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 \
        --advertise-address=$address --secure-port=6443 --allow-privileged=true \
        --tls-cert-file="$pki/server.crt" --tls-private-key-file="$pki/server.key" --client-ca-file="$pki/ca.crt" \
        --service-account-issuer=https://kubernetes.default.svc.cluster.local \
        --service-account-key-file="$pki/sa.pub" --service-account-signing-key-file="$pki/sa.key" \
        --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
        --feature-gates=MutatingAdmissionPolicy=true --runtime-config=admissionregistration.k8s.io/v1beta1=true \
        --kubelet-client-certificate="$pki/admin.crt" --kubelet-client-key="$pki/admin.key" \
        --kubelet-certificate-authority="$pki/ca.crt" --kubelet-preferred-address-types=InternalIP \
        --requestheader-client-ca-file="$pki/ca.crt" --requestheader-allowed-names=front-proxy \
        --service-cluster-ip-range=10.96.0.0/16,fd96::/108 --event-ttl=2h ${APISERVER_FLAGS:-}
    wait_for kube-apiserver kubectl get --raw /readyz
    local config=$pki/controllers.conf
    start kube-controller-manager "$home/bin/kube-controller-manager" --leader-elect=false \
        --kubeconfig="$config" --authentication-kubeconfig="$config" --authorization-kubeconfig="$config" \
        --service-account-private-key-file="$pki/sa.key" --root-ca-file="$pki/ca.crt" \
        --cluster-signing-cert-file="$pki/ca.crt" --cluster-signing-key-file="$pki/ca.key" --use-service-account-credentials
    config=$pki/scheduler.conf
    start kube-scheduler "$home/bin/kube-scheduler" --leader-elect=false \
        --kubeconfig="$config" --authentication-kubeconfig="$config" --authorization-kubeconfig="$config"
}

start_kubelet() {
    local each binds=
    for each in vm/overcommit_memory kernel/panic kernel/panic_on_oops; do
        binds+="mount --bind $home/sysctl/${each#*/} /proc/sys/$each; "
    done
    start kubelet unshare --mount --propagation unchanged sh -ec "mount --make-rprivate /proc; $binds
        exec $home/bin/kubelet --config=$home/kubelet.yaml --kubeconfig=$home/pki/kubelet.conf --hostname-override=$name \
            --node-ip=$address,fd30::2"
}

restart_asked() { # By the command restart, which waits for the file to go.
    local daemon
    daemon=$(cat "$home/restart")
    kill -KILL "${processes[$daemon]}"
    while kill -0 "${processes[$daemon]}" 2>/dev/null; do sleep 0.05; done
    case $daemon in
        containerd) start containerd containerd ;;
        kubelet)
            remove_leftovers
            start_kubelet
            ;;
    esac
    rm "$home/restart"
}

# containerd ends the containers whose start the kubelet had requested, and leaves their cgroups. For each of them cAdvisor
# waits 3.1 s for a task, one after the other, before the kubelet starts any pod (cadvisor/container/containerd/handler.go).
remove_leftovers() {
    while pgrep -x runc >/dev/null; do sleep 0.1; done
    find /sys/fs/cgroup -depth -type d -path "*/$group/kubepods/*" -regex '.*/[0-9a-f]+' -exec rmdir {} \; 2>/dev/null || true
}

inside() {
    # Its process id outside, read before /proc is that of the new namespace.
    local outer rest
    # shellcheck disable=SC2034 # the rest of the line
    read -r outer rest </proc/self/stat
    echo 0 >"$unified/$group/system/cgroup.procs"
    # containerd hands its environment on to CNI plugins.
    export ISTIO_INIT_CGROUP="$unified/$group"
    mount_everything
    make_network
    trap stop TERM
    trap restart_asked USR1
    start containerd containerd
    start_control_plane
    wait_for containerd ctr version
    ctr -n k8s.io images import "$home/pause.tar" >/dev/null
    start_kubelet
    start kube-proxy "$home/bin/kube-proxy" --config="$home/proxy.yaml"
    wait_for 'the node' kubectl wait --for=condition=Ready "node/$name" --timeout=1s
    wait_for 'the default service account' kubectl get serviceaccount default
    echo "$outer" >"$home/ready"
    # Its child processes are its own: what ends is waited for.
    while :; do
        wait -n || true
        [ -n "$(jobs -pr)" ] || sleep 1
    done
}

stop() {
    # All are asked; what is left after 5 seconds ends with this process, the first of its namespace.
    # shellcheck disable=SC2086 # process ids are words
    kill -TERM $started 2>/dev/null || true
    for _ in $(seq 50); do
        [ -n "$(jobs -pr)" ] || break
        sleep 0.1
    done
    exit 0
}

# --- The commands.

up() {
    [ ! -e "$home/ready" ] || { echo "$home/ready: it runs already, or was not stopped by 'down'" >&2; exit 1; }
    prepare
    make_cgroups
    setsid unshare --mount --propagation private --net --uts --pid --fork "$here/node.sh" inside >"$home/log/node" 2>&1 </dev/null &
    local first=$! try
    for try in $(seq 1800); do
        [ ! -e "$home/ready" ] || exit 0
        kill -0 "$first" 2>/dev/null || break
        sleep 0.1
    done
    echo "not up after $((try / 10)) s" >&2
    cat "$home/log/node" >&2
    kill -KILL "$first" 2>/dev/null || true
    remove_cgroups
    exit 1
}

down() {
    local first
    first=$(cat "$home/ready")
    kill -TERM "$first"
    while kill -0 "$first" 2>/dev/null; do sleep 0.1; done
    rm -f "$home/ready"
    remove_cgroups
}

restart() { # DAEMON
    echo "$1" >"$home/restart"
    kill -USR1 "$(cat "$home/ready")"
    while [ -e "$home/restart" ]; do sleep 0.1; done
}

remove_cgroups() { # They are empty once the kernel has taken the last process out.
    local try left each
    for try in $(seq 50); do
        left=
        for each in /sys/fs/cgroup/*/"$group" /sys/fs/cgroup/"$group"; do
            [ ! -d "$each" ] || find "$each" -depth -type d -exec rmdir {} \; 2>/dev/null || left=$each
        done
        [ -n "$left" ] || return 0
        sleep 0.2
    done
    echo "$left: not empty after $((try / 5)) s" >&2
}

case ${1:-} in
    up | inside | down) "$1" ;;
    restart) restart "${2:?}" ;;
    exec)
        shift
        # kubectl's cache of what the API server has is the node's own: another node has the same address.
        exec nsenter -t "$(cat "$home/ready")" -m -n -u -p env -C "$PWD" KUBECONFIG="$home/pki/admin.conf" \
            KUBECACHEDIR="$home/cache" PATH="$home/bin:$programs:$PATH" CONTAINERD_NAMESPACE=k8s.io "$@"
        ;;
    *)
        sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
        exit 2
        ;;
esac
