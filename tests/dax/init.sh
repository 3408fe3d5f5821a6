#!/bin/busybox sh
# Process 1 of the DAX guest: mounts the emulated NVDIMM with DAX, takes the host's files read-only
# over virtiofs, and runs the task that the kernel's command line names (plinius.task, .python,
# .script, .format, .folders). Whatever happens, the guest powers off at the end.
/bin/busybox mkdir -p /dev /proc /sys /tmp /etc /host
/bin/busybox --install -s /bin
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t devtmpfs none /dev
mount -t proc none /proc
mount -t sysfs none /sys

fail() {
	echo "plinius-failed: $*"
	poweroff -f
	sleep 60
}

value() {
	tr ' ' '\n' </proc/cmdline | sed -n "s/^plinius\.$1=//p"
}

while read -r module; do
	insmod "/modules/$module" || fail "module $module"
done </modules/order

tries=0
until [ -e /dev/pmem0 ] || [ -e /sys/bus/nd/devices/namespace0.0 ]; do
	tries=$((tries + 1))
	[ $tries -lt 50 ] || fail "there is no NVDIMM"
	sleep 0.1
done
if [ "$(value format)" = yes ]; then
	ndctl create-namespace -f -e namespace0.0 -m fsdax -M mem >/tmp/ndctl 2>&1 ||
		fail "ndctl: $(cat /tmp/ndctl)"
	/sbin/mke2fs -q -t ext4 -b 4096 -F /dev/pmem0 || fail "mke2fs"
fi

mount -t virtiofs -o ro hostroot /host || fail "the host's files"
for folder in dev proc sys; do
	mount --bind /$folder /host/$folder || fail "/$folder"
done
# What the task runs from may lie below a folder that is hidden by a mount: it is put back there.
folders=$(value folders | tr : ' ')
for folder in $folders; do
	mkdir -p "/kept$folder"
	mount --bind "/host$folder" "/kept$folder" || fail "$folder"
done
for folder in tmp run dev/shm; do
	mkdir -p /host/$folder
	mount -t tmpfs none /host/$folder || fail "/$folder"
done
mount -t ext4 -o dax=always /dev/pmem0 /host/mnt || fail "ext4 with dax=always"
for folder in $folders; do
	mkdir -p "/host$folder"
	mount --bind "/kept$folder" "/host$folder" || fail "$folder"
done

export HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis
chroot /host "$(value python)" "$(value script)" "$(value task)" /mnt
echo "plinius-ended: $?"
for folder in $folders; do
	umount "/host$folder"
done
umount /host/mnt
sync
poweroff -f
