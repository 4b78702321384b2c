"""Rules of the kinds that kube-proxy, Docker, Calico, Cilium, firewalld and hand-made firewalls write.

Of each extension that iptables-save prints by its options, at least one.
"""

# ruff: noqa: E501 (rules are lines)

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.model.rules import IPV4, IPV6

if TYPE_CHECKING:
    from istio_init.model.rules import Family

RULES: dict[Family, str] = {
    IPV4: """\
*raw
-A PREROUTING -j CT --notrack
-A PREROUTING -j NOTRACK
-A PREROUTING -j TRACE
-A PREROUTING -j CT --ctevents new,reply --expevents new --zone-orig 3
-A PREROUTING -j CT --zone mark
-A PREROUTING -p tcp -m tcp --dport 21 -j CT --helper ftp
COMMIT
*mangle
-A PREROUTING -m conntrack --ctstate RELATED,ESTABLISHED --ctdir REPLY -j ACCEPT
-A PREROUTING -m conntrack ! --ctstate NEW --ctproto 6 --ctorigdst 10.0.0.0/8 --ctorigdstport 80 -j ACCEPT
-A PREROUTING -m conntrack --ctstatus ASSURED -j ACCEPT
-A PREROUTING -m state --state RELATED,ESTABLISHED -j ACCEPT
-A PREROUTING -m rpfilter --loose --validmark --invert -j DROP
-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
-A FORWARD -p tcp -m tcp --sport 1:5 ! --dport 80 --tcp-flags FIN,SYN,RST,ACK SYN -j TCPMSS --set-mss 1400
-A FORWARD -m iprange ! --src-range 10.0.0.1-10.0.0.9 --dst-range 1.1.1.1-2.2.2.2 -j ACCEPT
-A FORWARD -m conntrack --ctstate UNTRACKED,SNAT,DNAT --ctproto 6 -j ACCEPT
-A FORWARD -m state --state UNTRACKED -j ACCEPT
-A FORWARD -j CONNMARK --set-xmark 0x1/0xff
-A FORWARD -j CONNMARK --set-xmark 0x1/0xff --left-shift-mark 3
-A FORWARD -j CONNMARK --save-mark --nfmask 0xff --ctmask 0xff00 --left-shift-mark 8
-A FORWARD -j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xff00 --right-shift-mark 8
-A FORWARD -m limit --limit 5/min -j ACCEPT
-A FORWARD -m limit --limit 10/sec --limit-burst 20 -j ACCEPT
-A FORWARD -m length --length 10:20 -j ACCEPT
-A FORWARD -m length ! --length 1400 -j ACCEPT
-A FORWARD -m ttl --ttl-lt 5 -j ACCEPT
-A FORWARD -m ttl ! --ttl-eq 1 -j ACCEPT
-A FORWARD -m ttl --ttl-gt 200 -j ACCEPT
-A FORWARD -m dscp ! --dscp 0x0a -j ACCEPT
-A FORWARD -m tos --tos 0x10/0x3f -j ACCEPT
-A FORWARD -p tcp -m ecn --ecn-tcp-cwr --ecn-tcp-ece -j ACCEPT
-A FORWARD -m ecn ! --ecn-ip-ect 2 -j ACCEPT
-A FORWARD -m mac ! --mac-source 00:11:22:33:44:55 -j ACCEPT
-A FORWARD -p sctp -m sctp --sport 1:5 ! --dport 80 -j ACCEPT
-A FORWARD -p sctp -m sctp --chunk-types any INIT,DATA:Be -j ACCEPT
-A FORWARD -p sctp -m sctp ! --chunk-types only ABORT:T -j ACCEPT
-A FORWARD -p sctp -m sctp --chunk-types all I_DATA,ASCONF_ACK,RE_CONFIG,PAD,FORWARD_TSN,ASCONF,I_FORWARD_TSN -j ACCEPT
-A FORWARD -p udp -m udp -j ACCEPT
-A FORWARD -p tcp -m tcp --sport 67 --dport 68 -j ACCEPT
-A FORWARD -p udp -m udp --sport 67 --dport 68 -j ACCEPT
-A FORWARD -p dccp -m dccp --dport 80 --dccp-types REQUEST,RESET,INVALID --dccp-option 5 -j ACCEPT
-A FORWARD -p esp -m esp --espspi 500 -j ACCEPT
-A FORWARD -p ah -m ah ! --ahspi 1:4 -j ACCEPT
-A FORWARD -p ipcomp -m ipcomp --ipcompspi 5 -j ACCEPT
-A FORWARD -p tcp -m tcpmss --mss 100:200 -j ACCEPT
-A FORWARD -p tcp -m tcp --tcp-option 5 -j ACCEPT
-A FORWARD -m string --string "a \\"b" --algo bm --from 5 --to 100 --icase -j ACCEPT
-A FORWARD -m string ! --hex-string "|00ff|" --algo kmp -j ACCEPT
-A FORWARD -m u32 --u32 "6&0xFF=1 && 0>>22&0x3C@4=0x29,5:9" -j ACCEPT
-A FORWARD -m bpf --bytecode "4,48 0 0 9,21 0 1 6,6 0 0 1,6 0 0 0" -j ACCEPT
-A FORWARD -p tcp -m osf --genre Linux --ttl 2 --log 0 -j ACCEPT
-A FORWARD -m hashlimit --hashlimit-upto 5/sec --hashlimit-burst 7 --hashlimit-mode srcip,dstport --hashlimit-name x -j ACCEPT
-A FORWARD -m hashlimit --hashlimit-above 20/hour --hashlimit-name y --hashlimit-mode srcip --hashlimit-srcmask 24 --hashlimit-htable-size 64 --hashlimit-htable-expire 5000 -j ACCEPT
-A FORWARD -m hashlimit --hashlimit-above 512kb/s --hashlimit-name z --hashlimit-mode dstip -j ACCEPT
-A FORWARD -m hashlimit --hashlimit-above 3mb/s --hashlimit-burst 5mb --hashlimit-name w --hashlimit-mode dstip -j ACCEPT
-A FORWARD -m hashlimit --hashlimit-upto 5/sec --hashlimit-name v --hashlimit-rate-match --hashlimit-rate-interval 3 -j ACCEPT
-A FORWARD -m recent --name foo --rcheck --seconds 60 --hitcount 4 --rttl -j ACCEPT
-A FORWARD -m recent --set --name bar --rdest -j ACCEPT
-A FORWARD -m recent ! --update --name bar --mask 255.255.255.0 --seconds 6 --reap -j ACCEPT
-A FORWARD -p tcp -m connlimit --connlimit-above 5 --connlimit-mask 24 -j ACCEPT
-A FORWARD -m connlimit --connlimit-upto 5 --connlimit-daddr -j ACCEPT
-A FORWARD -m connbytes ! --connbytes 100:200 --connbytes-dir both --connbytes-mode bytes -j ACCEPT
-A FORWARD -m connbytes --connbytes 100 --connbytes-dir reply --connbytes-mode avgpkt -j ACCEPT
-A FORWARD -m quota --quota 500 -j ACCEPT
-A FORWARD -m time --timestart 10:00 --timestop 11:30:15 --monthdays 1,15 --weekdays Mon,Fri --kerneltz -j ACCEPT
-A FORWARD -m time --timestart 22:00 --timestop 04:00 --datestart 2024-01-02T03:04:05 --contiguous -j ACCEPT
-A FORWARD -m helper --helper ftp -j ACCEPT
-A FORWARD -m connlabel ! --label 1 --set -j ACCEPT
-A FORWARD -m cluster --cluster-total-nodes 2 --cluster-local-node 1 --cluster-hash-seed 0xdeadbeef -j ACCEPT
-A OUTPUT -m owner --uid-owner 5 ! --gid-owner 6-9 -j ACCEPT
-A OUTPUT -m owner ! --socket-exists -j ACCEPT
-A OUTPUT -m owner --gid-owner 6 --suppl-groups -j ACCEPT
-A PREROUTING -m socket --transparent --nowildcard -j ACCEPT
-A PREROUTING -m socket --restore-skmark -j ACCEPT
-A PREROUTING -m socket -j ACCEPT
-A FORWARD -m cpu ! --cpu 1 -j ACCEPT
-A FORWARD -m realm --realm 5 -j ACCEPT
-A FORWARD -m realm ! --realm 0x5/0xff -j ACCEPT
-A FORWARD -m devgroup --src-group 5/0xf ! --dst-group 7 -j ACCEPT
-A FORWARD -m policy --dir in --pol ipsec -j ACCEPT
-A FORWARD -m policy --dir out --pol ipsec --strict --reqid 5 --proto esp --mode tunnel --tunnel-src 10.0.0.0/8 ! --tunnel-dst 10.0.0.1/32 --next --proto ah --spi 0x64 -j ACCEPT
-A FORWARD -m policy --dir out --pol none -j ACCEPT
-A PREROUTING -m rpfilter -j ACCEPT
-A FORWARD -j TTL --ttl-set 5
-A FORWARD -j TTL --ttl-dec 1
-A FORWARD -j DSCP --set-dscp 0x0a
-A FORWARD -j TOS --set-tos 0x10/0x3f
-A FORWARD -j TEE --gateway 10.0.0.1 --oif eth0
-A FORWARD -p tcp -j TCPOPTSTRIP --strip-options 2,3,8
-A FORWARD -p tcp -j ECN --ecn-tcp-remove
-A FORWARD -j ECN --ecn-ip-ect 1
-A FORWARD -j CLASSIFY --set-class 1:10
-A FORWARD -j CHECKSUM --checksum-fill
-A FORWARD -j IDLETIMER --timeout 10 --label x
-A FORWARD -j AUDIT --type reject
-A FORWARD -p tcp -j HMARK --hmark-src-prefix 24 --hmark-dst-prefix 16 --hmark-sport-mask 0x00ff --hmark-dport-mask 0xff00 --hmark-rnd 0x00000001 --hmark-mod 10 --hmark-offset 100
-A FORWARD -p tcp -j HMARK --hmark-src-prefix 32 --hmark-dport-mask 0x0099 --hmark-sport 0x0009 --hmark-proto-mask 0x0f --hmark-rnd 0x0000cafe --hmark-mod 10 --hmark-offset 3 --hmark-tuple ct
-A FORWARD -p esp -j HMARK --hmark-src-prefix 24 --hmark-spi-mask 0xff00ff00 --hmark-rnd 0x00000001 --hmark-mod 10
-A FORWARD -p esp -j HMARK --hmark-src-prefix 24 --hmark-spi 0x0000abcd --hmark-rnd 0x00000001 --hmark-mod 10
-A FORWARD -j RATEEST --rateest-name a --rateest-interval 250.0ms --rateest-ewmalog 500.0ms
-A FORWARD -j RATEEST --rateest-name b --rateest-interval 8.0s --rateest-ewmalog 256.0s
-A FORWARD -m rateest --rateest a --rateest-lt --rateest-bps 1496bit -j ACCEPT
-A FORWARD -m rateest --rateest a ! --rateest-lt --rateest-bps 8000Kbit -j ACCEPT
-A FORWARD -m rateest --rateest a --rateest-eq --rateest-pps 100 -j ACCEPT
-A FORWARD -m rateest --rateest-delta --rateest a --rateest-bps1 1000bit --rateest-lt --rateest-bps2 2000Mbit -j ACCEPT
-A FORWARD -m rateest --rateest-delta --rateest1 a --rateest-pps1 10 --rateest-gt --rateest-pps2 20 --rateest2 b -j ACCEPT
-A FORWARD -m rateest --rateest1 a ! --rateest-lt --rateest-bps --rateest2 b -j ACCEPT
-A FORWARD -p icmp -m icmp --icmp-type 8 -j ACCEPT
-A FORWARD -p icmp -m icmp --icmp-type 3/4 -j ACCEPT
-A FORWARD -m pkttype ! --pkt-type broadcast -j ACCEPT
COMMIT
*nat
:KUBE-SVC - [0:0]
-A PREROUTING -p tcp -m addrtype --dst-type LOCAL -j DNAT --to-destination 10.0.0.1:8080
-A PREROUTING -p tcp -m tcp --dport 80 -m comment --comment "a b" -j DNAT --to-destination 10.0.0.1-10.0.0.9:80-90
-A PREROUTING -p tcp -j DNAT --to-destination 10.0.0.1:1000-2000/1500
-A OUTPUT -m statistic --mode random --probability 0.33333333349 -j KUBE-SVC
-A OUTPUT -m statistic --mode nth --every 3 --packet 1 -j KUBE-SVC
-A POSTROUTING -s 10.0.0.0/24 ! -o docker0 -j MASQUERADE --random-fully
-A POSTROUTING -p tcp -j MASQUERADE --to-ports 1024-2048
-A PREROUTING -j NETMAP --to 10.5.0.0/16
-A POSTROUTING -d 10.6.0.0/16 -j NETMAP --to 192.0.2.7
-A POSTROUTING -d 10.1.0.0/16 -j SNAT --to-source 10.2.2.2 --persistent
-A POSTROUTING -m physdev --physdev-is-bridged -j ACCEPT
-A POSTROUTING -m physdev ! --physdev-in eth+ --physdev-out eth1 -j ACCEPT
COMMIT
*filter
-A INPUT -j REJECT --reject-with icmp-port-unreachable
-A INPUT -p tcp -j REJECT --reject-with tcp-reset
-A INPUT -j LOG --log-prefix "foo: " --log-level 6 --log-uid
-A INPUT -s 10.0.12.0/255.0.255.0 -d 192.168.0.1/255.255.0.255 -i eth0 -p tcp -j DROP
-A INPUT ! -s 10.0.12.0/255.0.255.0 -j DROP
-A INPUT -s 10.0.0.0/8 -f -j DROP
-A INPUT -p tcp ! -f -j ACCEPT
-A INPUT -j LOG
-A INPUT -j NFLOG --nflog-prefix "x y" --nflog-group 3 --nflog-threshold 5
-A INPUT -j NFLOG --nflog-group 3 --nflog-size 20
-A INPUT -j NFLOG --nflog-group 3 --nflog-size 0
-A INPUT -j NFLOG --nflog-prefix "a prefix that is as long as the struct of the legacy tables holds" --nflog-group 3
-A INPUT -j NFQUEUE --queue-num 3
-A INPUT -p tcp -m conntrack --ctstate INVALID -j SYNPROXY --sack-perm --timestamp --wscale 7 --mss 1460
-A INPUT -j NFQUEUE --queue-num 3 --queue-bypass
-A INPUT -j NFQUEUE --queue-balance 0:3
-A INPUT -m addrtype ! --src-type LOCAL,MULTICAST --limit-iface-in -j ACCEPT
COMMIT
""",
    IPV6: """\
*mangle
-A PREROUTING -p tcp -j HMARK --hmark-src-prefix 64 --hmark-dst-prefix 128 --hmark-rnd 0x00000004 --hmark-mod 7
-A PREROUTING -p ipv6-icmp -m hl --hl-eq 255 -j ACCEPT
-A PREROUTING -m hl ! --hl-eq 255 -j ACCEPT
-A PREROUTING -m rt --rt-type 0 --rt-segsleft 1:5 ! --rt-len 8 -j DROP
-A PREROUTING -m frag --fragid 1 --fragfirst --fragmore -j DROP
-A PREROUTING -m frag --fraglast -j DROP
-A PREROUTING -m ah ! --ahspi 5 --ahres -j DROP
-A PREROUTING -m rt --rt-type 0 --rt-0-res --rt-0-addrs fd00::1,fd00::2 --rt-0-not-strict -j DROP
-A PREROUTING -m hbh ! --hbh-len 8 --hbh-opts 1:2,5 -j DROP
-A PREROUTING -m dst --dst-len 16 --dst-opts 4:1 -j DROP
-A PREROUTING -m dst --dst-len 0 -j DROP
-A PREROUTING -p ipv6-mh -m mh ! --mh-type 1:3 -j DROP
-A PREROUTING -p ipv6-mh -m mh -j DROP
-A PREROUTING -m ipv6header --header hop-by-hop,route,none,protocol --soft -j DROP
-A PREROUTING -m ipv6header ! --header dst,frag,auth,esp -j DROP
-A PREROUTING -m srh --srh-next-hdr 6 ! --srh-segs-left-gt 2 --srh-last-entry-lt 4 --srh-tag 7 -j DROP
-A PREROUTING -m srh --srh-hdr-len-eq 4 --srh-psid fd00::/64 ! --srh-nsid fd01::1/128 --srh-lsid fd02::/16 -j DROP
-A PREROUTING -m eui64 -j DROP
-A PREROUTING -m hashlimit --hashlimit-upto 5/sec --hashlimit-mode srcip --hashlimit-name x --hashlimit-srcmask 64 -j DROP
-A PREROUTING -m recent --rcheck --name v6 -j DROP
-A PREROUTING -m connlimit --connlimit-above 5 --connlimit-mask 64 -j DROP
-A PREROUTING -m policy --dir in --pol ipsec --mode tunnel --tunnel-src fd00::/8 --strict -j DROP
-A PREROUTING -j HL --hl-set 5
-A PREROUTING -d fd01::/64 -j DNPT --src-pfx fd01::/64 --dst-pfx fd00::/64
-A POSTROUTING -s fd00::/64 -j SNPT --src-pfx fd00::/64 --dst-pfx fd01::/64
-A PREROUTING -j TEE --gateway fd00::1
COMMIT
*nat
-A PREROUTING -j NETMAP --to fd00:1::/64
-A PREROUTING -j NETMAP --to fd00:1::7
-A PREROUTING -p tcp -j DNAT --to-destination [fd00::1]:8080
-A PREROUTING -j DNAT --to-destination fd00::1
-A POSTROUTING -j MASQUERADE
COMMIT
*filter
-A INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 128 -j ACCEPT
-A INPUT -s fd00::1/ffff::ffff -p tcp -j DROP
-A INPUT -m conntrack --ctstate NEW --ctorigdst fd00::/8 -j ACCEPT
-A INPUT -j REJECT --reject-with icmp6-port-unreachable
COMMIT
""",
}
