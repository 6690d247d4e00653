#!/usr/bin/env python3
"""Golden vectors of what the engine stores, before it is sealed: written from the documentation of
the formats, with nothing but the standard library. `python3 generate.py > formats.json`."""

import hashlib
import hmac
import json


def u(number, size):
    return number.to_bytes(size, "big")


KEY = bytes(range(32))
STORE = bytes(range(16))


def code(path, stored):
    path = path.encode()
    return hmac.new(KEY, u(len(path), 4) + path + stored, hashlib.sha256).digest()


records = [("alias/a", b"one"), ("key/1", b""), ("meta/time", bytes(200)), ("é", b"\xff" * 33)]
total = sum(int.from_bytes(code(*record), "big") for record in records) % 2**256
counts = b"".join(u(n * n, 8) for n in range(256))

print(json.dumps({
    "codes": [
        {"path": path, "stored": stored.hex(), "code": code(path, stored).hex(),
         "shard": hashlib.sha256(path.encode()).digest()[0]}
        for path, stored in records
    ],
    "sum": u(total, 32).hex(),
    "head": (b"\x01" + STORE + u(7, 8) + u(len(records), 8) + u(total, 32)).hex(),
    "mark": (b"\x02" + u(99, 8) + bytes([0xAB] * 32) + counts).hex(),
    "anchor": (b"\x01" + STORE + counts).hex(),
    "checkpoint": (b"\x01" + u(7, 8) + u(104, 8) + bytes([0x33] * 32)).hex(),
    "checkpoint_behind_a_lost_one": (
        b"\x01" + u(7, 8) + u(104, 8) + bytes([0x33] * 32)
        + u(4, 8) + u(80, 8) + bytes([0x22] * 32)
    ).hex(),
    "parcel": (b"\x02" + u(98, 8) + b"\x03" + bytes([0x00, 0x7F, 0xFF]) + b'"time":"now"').hex(),
    "uses": (b"\x01" + u(2**40, 8)).hex(),
    "keyring": (
        b"\x02" + STORE + KEY
        + u(1, 4) + u(0, 8) + bytes([0x11] * 32)
        + u(2, 4) + u(1_767_225_600_000, 8) + bytes([0x22] * 32)
    ).hex(),
    "keyring_of_the_first_release": (b"\x01" + u(1, 4) + bytes([0x11] * 32)).hex(),
}, indent=1))
