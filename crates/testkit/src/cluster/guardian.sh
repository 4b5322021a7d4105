# Ends a cluster as soon as whoever started this lets go of its standard input, if only by dying: every process in the cluster's control
# groups, then the groups, then its files.
#   sh guardian.sh GROUP [FOLDER]
trap '' INT TERM HUP
cat >/dev/null
groups() { for group in "/sys/fs/cgroup/$1" /sys/fs/cgroup/*/"$1"; do [ ! -d "$group" ] || echo "$group"; done; }
tries=0
while [ "$tries" -lt 200 ]; do
  tries=$((tries + 1))
  found=$(groups "$1")
  [ -n "$found" ] || break
  # A process that is ending stays in its group for a moment.
  processes=$(find $found -name cgroup.procs -exec cat {} + 2>/dev/null | sort -u)
  [ -z "$processes" ] || kill -9 $processes 2>/dev/null
  find $found -depth -type d -exec rmdir {} + 2>/dev/null
  sleep 0.05
done
[ -z "${2:-}" ] || rm -rf "$2"
