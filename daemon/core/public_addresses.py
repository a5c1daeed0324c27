"""Decides which IP addresses are on the public Internet. Pure.

The gate connects to nothing else unless the configuration names it, so that an agent reaches neither this machine, nor its
network, nor a cloud's metadata service (169.254.169.254). Addresses that carry an IPv4 address inside count as that one
too: mapped (RFC 4291, 2.5.5.2), 6to4 (RFC 3056), Teredo (RFC 4380), NAT64 (RFC 6052).
"""

from __future__ import annotations

import ipaddress
from typing import Final

_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(text: str) -> bool:
    """Return whether the address, and every address inside it, is a public unicast one. Raise ValueError if it is not an address."""
    return all(_is_public(one) for one in _meant(ipaddress.ip_address(text)))


def _meant(address: Address) -> tuple[Address, ...]:
    """Return the addresses that packets to this one may reach: the mapped one in its place, or itself and a tunnel's ends."""
    if isinstance(address, ipaddress.IPv4Address):
        return (address,)
    if address.ipv4_mapped is not None:
        return (address.ipv4_mapped,)
    if address in _NAT64:
        return (ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF),)
    tunnel = address.teredo or ((address.sixtofour,) if address.sixtofour is not None else ())
    return (address, *tunnel)


def _is_public(address: Address) -> bool:
    return address.is_global and not (
        address.is_multicast
        or address.is_reserved
        or address.is_unspecified
        or address.is_link_local
        or address.is_loopback
    )
