#!/bin/busybox sh
# The first process of a booted Debian: its disk, the kernel's modules, then systemd.
B=/bin/busybox
$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
$B mount -t devtmpfs dev /dev
for module in /modules/*; do $B insmod "$module" || echo "insmod $module failed"; done
$B mount -t ext4 /dev/vda /root
$B mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=512000 modules /root/lib/modules
for directory in proc sys dev; do $B mount --move /$directory /root/$directory; done
exec $B switch_root /root /sbin/init
