"""The words of nftables' netlink messages about rules that iptables-nft's rules are made of.

The layouts are those of <linux/netfilter/nf_tables.h> and nf_tables_compat.h: numbers in network order, what is
compared as the packet or the kernel has it.
"""

from __future__ import annotations

from _struct import Struct  # the C half of struct

# A piece of user data of ours, by a type that nobody uses: the rule's signature. It is kept and never printed.
SIGNATURE = bytes((0x7F, 4)) + b"ISTI"

EXPRESSIONS, COMPAT, USERDATA = 4, 5, 7  # NFTA_RULE_*
ELEMENT, EXPRESSION_NAME, EXPRESSION_DATA = 1, 1, 2
NESTED = 0x8000
REGISTER = 1
IIFNAME, OIFNAME, L4PROTO, MARK = 6, 7, 16, 3  # NFT_META_*
NETWORK, TRANSPORT = 1, 2  # NFT_PAYLOAD_*_HEADER
EQUAL, UNEQUAL = 0, 1
ACCEPT, DROP, QUEUE, JUMP, GOTO, RETURN = 1, 0, 3, -3, -4, -5
VERDICTS = {"ACCEPT": ACCEPT, "DROP": DROP, "QUEUE": QUEUE, "RETURN": RETURN}
NATIVE = Struct("=I")

# By family: where the header has source and destination.
SOURCE_AT = {4: 12, 16: 8}
DESTINATION_AT = {4: 16, 16: 24}

# A match of everything that we can't read, in order and as the kernel has it; never an extension's name.
UNREAD = "nf_tables"
