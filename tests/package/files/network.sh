# Runs at boot: the firewall's v1 towards a peer in a namespace of its own.
set -e
ip netns add peer
ip link add v1 type veth peer name p1 netns peer
ip addr add 10.99.1.1/24 dev v1
ip link set v1 up
ip link set lo up
ip -n peer addr add 10.99.1.2/24 dev p1
ip -n peer link set p1 up
