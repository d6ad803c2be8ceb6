#!/bin/busybox sh
# The guest's first process: the host's files, read only, under a copy-on-write layer in memory;
# then /command on the second serial line.
B=/bin/busybox
$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
$B mount -t devtmpfs dev /dev
for module in /modules/*; do $B insmod "$module" || echo "insmod $module failed"; done
share() { $B mount -t 9p -o "trans=virtio,version=9p2000.L,ro,cache=loose,msize=512000" "$1" "$2"; }
layer() {
	$B mkdir -p "/memory/$1/upper" "/memory/$1/work" "$3"
	$B mount -t overlay -o "lowerdir=$2,upperdir=/memory/$1/upper,workdir=/memory/$1/work" overlay "$3"
}
share host /host
$B mount -t tmpfs memory /memory
layer root /host /root
for directory in proc sys dev; do
	$B mkdir -p /root/$directory
	$B mount --move /$directory /root/$directory
done
for directory in run tmp; do $B mount -t tmpfs tmpfs /root/$directory; done
. /settings
# The tree may be below /tmp, which the guest has of its own.
layer tree "/host$TREE" "/root$TREE"
layer environment "/host$ENVIRONMENT" "/root$ENVIRONMENT"
$B mkdir -p /root/dev/pts /root/lib/modules
$B mount -t devpts devpts /root/dev/pts
$B mount -t bpf bpf /root/sys/fs/bpf
share modules /root/lib/modules
$B cp /settings /command /second /root/run/
exec $B switch_root /root /bin/bash /run/second
