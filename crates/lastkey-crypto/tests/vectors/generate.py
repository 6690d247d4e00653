#!/usr/bin/env python3
"""Makes the golden vectors of Lastkey's formats, from their description alone.

Written against the module documentation with Python's `cryptography`, not with the Rust code, so
that the two check each other. The vectors are frozen: a change of an existing file means that old
ciphertext no longer opens. Run it only to add cases:  python3 generate.py
"""

import hashlib
import json
import pathlib
import struct

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

HERE = pathlib.Path(__file__).parent
VERSION_ID = "1d1c6a34-5f0e-4c3b-9a58-6a8f5a0e7c21"
KEY_ID = "0b9f2a6e-7f5d-4f0a-8e11-93d5c1a2b3c4"


def seq(start, n):
    return bytes((start + i) % 256 for i in range(n))


def hkdf(secret, salt, info, length):
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=salt, info=info).derive(secret)


def prefixed(*parts):
    return b"".join(struct.pack(">I", len(p)) + p for p in parts)


def context_aad(label, version, context):
    pairs = sorted((n.encode(), v.encode()) for n, v in context.items())
    out = prefixed(label, version.encode()) + struct.pack(">I", len(pairs))
    return out + b"".join(prefixed(n, v) for n, v in pairs)


def blob(material, version, context, plaintext, random):
    iv, salt = random[:12], random[12:]
    bits = {16: b"128", 24: b"192"}.get(len(material), b"256")
    key = hkdf(material, salt, b"lastkey blob 1 AES-" + bits + b"-GCM", int(bits) // 8)
    aad = context_aad(b"lastkey blob 1", version, context)
    return version.encode() + iv + salt + AESGCM(key).encrypt(iv, plaintext, aad)


def record(number, material, path, counter, plaintext, random):
    head = struct.pack(">BIQ", 1, number, counter)
    salt, iv = random[:16], random[16:]
    key = hkdf(material, salt, b"lastkey record 1 AES-256-GCM", 32)
    aad = prefixed(b"lastkey record 1", head, path.encode())
    return head + salt + iv + AESGCM(key).encrypt(iv, plaintext, aad)


def wrap(root, purpose, secret, random):
    salt, iv = random[:16], random[16:]
    key = hkdf(root, salt, b"lastkey wrap 1 AES-256-GCM", 32)
    aad = prefixed(b"lastkey wrap 1", purpose.encode())
    return b"\x01" + salt + iv + AESGCM(key).encrypt(iv, secret, aad)


def envelope(data_key, salt, stanzas, plaintext):
    fixed = b"LASTKEY\0" + bytes([1, 1, 20, 0]) + salt
    digest = hashlib.sha256(fixed).digest()
    key = AESGCM(hkdf(data_key, salt, b"lastkey file 1 payload AES-256-GCM" + digest, 32))
    out = fixed + hkdf(data_key, salt, b"lastkey file 1 commitment" + digest, 32)
    out += bytes([len(stanzas)])
    for key_id, wrapped in stanzas:
        out += key_id.encode() + struct.pack(">H", len(wrapped)) + wrapped
    chunks = [plaintext[i : i + 2**20] for i in range(0, len(plaintext), 2**20)] or [b""]
    for number, chunk in enumerate(chunks):
        last = b"\x01" if number == len(chunks) - 1 else b"\x00"
        out += key.encrypt(number.to_bytes(11, "big") + last, chunk, b"")
    return out


def stanza_list(stanzas):
    out = bytes([len(stanzas)])
    for key_id, wrapped in stanzas:
        out += key_id.encode() + struct.pack(">H", len(wrapped)) + wrapped
    return out


def slot(digest, blocks, generation, stanzas):
    body = struct.pack(">Q", generation) + stanza_list(stanzas)
    body += bytes(4096 * blocks - 32 - len(body))
    return body + hashlib.sha256(b"lastkey file 2 stanzas" + digest + body).digest()


def header_2(data_key, file_salt, key_salt, blocks, lists):
    """`lists`: what the two slots hold, as (generation, stanzas) or None; one list if blocks = 0."""
    fixed = b"LASTKEY\0" + bytes([2, 1, 20, 0]) + file_salt + key_salt
    digest = hashlib.sha256(fixed).digest()
    out = fixed + hkdf(data_key, file_salt, b"lastkey file 2 commitment" + digest, 32)
    out += bytes([blocks])
    if blocks == 0:
        return out + stanza_list(lists[0][1]), digest
    out += bytes(4096 - len(out))
    for one in lists:
        out += slot(digest, blocks, *one) if one else bytes(4096 * blocks)
    return out, digest


def envelope_2(data_key, file_salt, key_salt, blocks, stanzas, plaintext):
    out, digest = header_2(data_key, file_salt, key_salt, blocks, [(1, stanzas), None])
    key = AESGCM(hkdf(data_key, file_salt, b"lastkey file 2 payload AES-256-GCM" + digest, 32))
    chunks = [plaintext[i : i + 2**20] for i in range(0, len(plaintext), 2**20)] or [b""]
    for number, chunk in enumerate(chunks):
        last = b"\x01" if number == len(chunks) - 1 else b"\x00"
        out += key.encrypt(number.to_bytes(11, "big") + last, chunk, b"")
    return out


def pattern(length):
    """Bytes that repeat with a period of 251, so that no two chunks are alike."""
    return (bytes(range(251)) * (length // 251 + 1))[:length]


def write(name, about, cases):
    text = json.dumps({"about": about, "cases": cases}, indent=1)
    (HERE / f"{name}.json").write_text(text + "\n")


contexts = [
    ("empty", {}),
    ("one pair", {"a": "bc"}),
    ("order of insertion differs from order of bytes", {"b": "2", "a": "1", "B": "3", "": ""}),
    ("sorted by UTF-8 bytes, where UTF-16 would differ", {"\U00010000": "x", "\uffff": "y"}),
    ("nothing is normalised", {"e\u0301": "decomposed", "\u00e9": "composed"}),
    ("a name is a prefix of another", {"ab": "c", "a": "bc"}),
]
write("context", "associated data of an encryption context; label and result in hex", [
    {"name": name, "label": b"lastkey blob 1".hex(), "key_version": VERSION_ID, "context": context,
     "associated_data": context_aad(b"lastkey blob 1", VERSION_ID, context).hex()}
    for name, context in contexts
])

write("blob", "ciphertext blobs; `random` is what the entropy source yields, in order", [
    {"name": f"AES-{8 * size}, {what}", "material": seq(size, size).hex(), "key_version": VERSION_ID,
     "context": context, "plaintext": plaintext.hex(), "random": seq(0, 28).hex(),
     "blob": blob(seq(size, size), VERSION_ID, context, plaintext, seq(0, 28)).hex()}
    for size in (16, 24, 32)
    for what, context, plaintext in [
        ("nothing at all", {}, b""),
        ("a data key", {}, seq(0x40, 32)),
        ("with a context", {"tenant": "a", "app": "b"}, b"attack at dawn"),
    ]
])

write("record", "sealed store records", [
    {"name": path, "keyring_key": number, "material": seq(0x20, 32).hex(), "path": path,
     "counter": counter, "plaintext": plaintext.hex(), "random": seq(0, 28).hex(),
     "record": record(number, seq(0x20, 32), path, counter, plaintext, seq(0, 28)).hex()}
    for number, path, counter, plaintext in [
        (7, "keys/" + KEY_ID, 42, b'{"state":"enabled"}'),
        (0, "", 0, b""),
        (2**32 - 1, "aliases/größer", 2**64 - 1, seq(0, 100)),
    ]
])

write("wrap", "secrets wrapped under the root key", [
    {"name": purpose, "root": seq(0x60, 32).hex(), "purpose": purpose, "secret": secret.hex(),
     "random": seq(0, 28).hex(), "wrapped": wrap(seq(0x60, 32), purpose, secret, seq(0, 28)).hex()}
    for purpose, secret in [("keyring", seq(0x80, 64)), ("", b"")]
])

ids = {"lineage": seq(0xA0, 16), "cluster": bytes.fromhex("b0b1b2b3b4b546b788b9babbbcbdbebf"),
       "key_version": bytes.fromhex(VERSION_ID.replace("-", "")), "epoch": seq(0xC0, 16)}
inner_context = {"lastkey:cluster": "b0b1b2b3-b4b5-46b7-88b9-babbbcbdbebf",
                 "lastkey:lineage": ids["lineage"].hex(), "lastkey:epoch": ids["epoch"].hex()}
inner = blob(seq(32, 32), VERSION_ID, inner_context, seq(0x40, 32), seq(0, 28))
write("plugin_blob", "what the plugin hands to the apiserver, and its key_id", [
    {"name": "a seed of the apiserver", "lineage": ids["lineage"].hex(),
     "cluster": "b0b1b2b3-b4b5-46b7-88b9-babbbcbdbebf", "key_version": VERSION_ID,
     "epoch": ids["epoch"].hex(), "material": seq(32, 32).hex(), "plaintext": seq(0x40, 32).hex(),
     "random": seq(0, 28).hex(),
     "plugin_blob": (b"\x01" + b"".join(ids.values()) + inner).hex(),
     "key_id": hashlib.sha256(
         prefixed(b"lastkey plugin key id 1", *ids.values())).hexdigest()},
])

stanza = (KEY_ID, blob(seq(32, 32), VERSION_ID, {"lastkey:file-salt": seq(0, 32).hex()},
                       seq(0x40, 32), seq(0, 28)))
files = []
for name, length, stanzas in [
    ("empty file", 0, [stanza]),
    ("short file for two keys", 14, [stanza, (VERSION_ID, b"other")]),
    ("one byte less than a chunk", 2**20 - 1, [stanza]),
    ("exactly one chunk", 2**20, [stanza]),
    ("one byte more than a chunk", 2**20 + 1, [stanza]),
    ("three chunks and a bit", 3 * 2**20 + 5, [stanza]),
]:
    sealed = envelope(seq(0x40, 32), seq(0, 32), stanzas, pattern(length))
    case = {"name": name, "data_key": seq(0x40, 32).hex(), "salt": seq(0, 32).hex(),
            "stanzas": [{"key_id": k, "wrapped": w.hex()} for k, w in stanzas],
            "plaintext_len": length, "envelope_len": len(sealed),
            "envelope_sha256": hashlib.sha256(sealed).hexdigest()}
    if length < 100:
        case["envelope"] = sealed.hex()
    files.append(case)
write("envelope", "file envelopes; the plaintext is byte i = i mod 251", files)

salts = (seq(0, 32), seq(0x20, 32))
stanza = (KEY_ID, blob(seq(32, 32), VERSION_ID, {"lastkey:file-salt": salts[1].hex()},
                       seq(0x40, 32), seq(0, 28)))
files = []
for name, blocks, length, stanzas, copies, repeats in [
    ("empty file", 0, 0, [stanza], 1, 1),
    ("short file for two keys", 0, 14, [stanza, (VERSION_ID, b"other")], 1, 1),
    ("exactly one chunk", 0, 2**20, [stanza], 1, 1),
    ("empty file with room", 1, 0, [stanza], 1, 1),
    ("one byte more than a chunk", 1, 2**20 + 1, [stanza], 1, 1),
    ("exactly two chunks", 1, 2 * 2**20, [stanza], 1, 1),
    ("three chunks and a bit", 1, 3 * 2**20 + 5, [stanza], 1, 1),
    ("room for 40 stanzas and as many again", 3, 14, [stanza], 40, 1),
    ("no slot is larger", 16, 14, [(KEY_ID, seq(0, 200))], 40, 5),
    ("stanzas too large for any slot", 0, 14, [(KEY_ID, seq(0, 256))], 64, 16),
]:
    full = [(key_id, wrapped * repeats) for key_id, wrapped in stanzas] * copies
    sealed = envelope_2(seq(0x40, 32), *salts, blocks, full, pattern(length))
    case = {"name": name, "data_key": seq(0x40, 32).hex(), "file_salt": salts[0].hex(),
            "key_salt": salts[1].hex(), "slot_blocks": blocks,
            "stanzas": [{"key_id": k, "wrapped": w.hex()} for k, w in stanzas],
            "stanza_copies": copies, "wrapped_repeats": repeats,
            "plaintext_len": length, "envelope_len": len(sealed),
            "envelope_sha256": hashlib.sha256(sealed).hexdigest()}
    if len(sealed) < 1000:
        case["envelope"] = sealed.hex()
    files.append(case)
write("envelope_2", "file envelopes of format 2; the plaintext is byte i = i mod 251", files)

cases = []
for name, generation, side, new in [
    ("the first time", 1, 0, [(VERSION_ID, b"other")]),
    ("the second time", 2, 1, [stanza, (VERSION_ID, b"other")]),
    ("after long use", 2**32, 0, [(VERSION_ID, b"other")]),
]:
    put = lambda here, there: [here, there] if side == 0 else [there, here]
    old, fresh = (generation, [stanza]), (generation + 1, new)
    before, between, after = (
        header_2(seq(0x40, 32), *salts, 1, lists)[0]
        for lists in (put(old, None), put(old, fresh), put(None, fresh)))
    cases.append({"name": name, "header_before": before.hex(),
                  "stanzas": [{"key_id": k, "wrapped": w.hex()} for k, w in new],
                  "header_between": hashlib.sha256(between).hexdigest(),
                  "header_after": hashlib.sha256(after).hexdigest()})
write("envelope_rewrap", "stanzas replaced in place, in two steps; the last two are SHA-256", cases)
