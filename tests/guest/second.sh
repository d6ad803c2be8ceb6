# What the guest does in its real root: the command, its exit code, and power off.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
export PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
. /run/settings
export BPFILTER_GUEST=$GUEST PYTHONPATH=$TREE
stty -F /dev/ttyS1 raw
ip link set lo up
cd "$TREE" || exit
bash /run/command 2>&1 < /dev/null | cat > /dev/ttyS1
echo "guest exit ${PIPESTATUS[0]}" > /dev/ttyS1
sync
echo o > /proc/sysrq-trigger
sleep 10
