# The root of a node, made in mount, UTS and network namespaces that are new: /run, /sys, /etc and /var are the node's own, all else is
# the machine's. NODE has the node's files; it is bound over nothing of the machine's, so that nothing is left there.
#   sh node.sh NODE NAME
set -e
node=$1
for folder in etc var; do
  mount -t overlay overlay -o "lowerdir=/$folder,upperdir=$node/$folder,workdir=$node/work-$folder" "/$folder"
done
# What lies on an overlay can be no layer of another one.
for folder in containerd kubelet; do
  mkdir -p "/var/lib/$folder"
  mount --bind "$node/$folder" "/var/lib/$folder"
done
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/lock
# A sysfs shows the network of who mounts it.
mount --rbind /sys/fs/cgroup "$node/cgroup"
mount -t sysfs sysfs /sys
mount --rbind "$node/cgroup" /sys/fs/cgroup
umount -l "$node/cgroup"
# The kubelet sets these for the whole machine; here it sets files.
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1; do
  file=$node/sysctl/$(basename "${setting%=*}")
  echo "${setting#*=}" >"$file"
  mount --bind "$file" "/proc/sys/${setting%=*}"
done
mount --make-rshared /
hostname "$2"
# There is no systemd: what the node's own units do before the network is up is done here.
for unit in "$node"/etc/systemd/system/sysinit.target.wants/*.service; do
  [ ! -e "$unit" ] || sed -n 's/^ExecStart=//p' "$unit" | sh -e
done
touch "$node/up"
exec sleep infinity
