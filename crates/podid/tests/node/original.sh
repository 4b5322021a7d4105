# Plays the redirect of AAD Pod Identity's nmi: a chain in the table nat, looked after all the time, removed when it is told to end.
chain=aad-metadata
nat() { iptables -w 5 -t nat "$@"; }
leave() { nat -D PREROUTING -j $chain; nat -F $chain; nat -X $chain; exit; }
trap leave TERM
# As kube-proxy with iptables does: what a pod sends may be redirected to loopback.
echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet
while :; do
  if [ "$(nat -S $chain 2>/dev/null | wc -l)" != 3 ]; then
    nat -N $chain
    nat -F $chain
    nat -A $chain ! -s 127.0.0.1/32 -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 127.0.0.1:2579
    nat -A $chain -j RETURN
  fi
  nat -C PREROUTING -j $chain 2>/dev/null || nat -I PREROUTING 1 -j $chain
  touch /tmp/redirects
  sleep 1 &
  wait $!
done
