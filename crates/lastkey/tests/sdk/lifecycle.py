"""The life cycle of keys through an official Python SDK.

usage: lifecycle.py old|acs3|v2|v4 CREDENTIALS_FILE
"""

import base64
import json
import re
import sys
import uuid

from clients import Refused, make

flavour, credentials_file = sys.argv[1:]
with open(credentials_file) as file:
    credentials = json.load(file)
client = make(flavour, credentials)
call = client.call
checks = 0


def check(condition, what):
    global checks
    checks += 1
    assert condition, what


def same(left, right, what):
    check(left == right, f"{what}: {left!r} is not {right!r}")


def refused(code, status, action, **params):
    """The call is refused with this code (or one of these) and status."""
    global checks
    checks += 1
    codes = (code,) if isinstance(code, str) else code
    try:
        answer = call(action, **params)
    except Refused as refusal:
        assert refusal.code in codes and refusal.status in (status, None), (
            f"{action}: wanted {status} {codes}, got {refusal}"
        )
        return
    raise AssertionError(f"{action} should be refused with {codes}, but answered {answer}")


def metadata(key_id):
    return call("DescribeKey", KeyId=key_id)["KeyMetadata"]


def b64(data):
    return base64.b64encode(data).decode()


def keys():
    made = call("CreateKey", Description="made by the SDK lane")
    check(re.fullmatch(r"[0-9a-fA-F-]{36}", made["RequestId"]), "a RequestId")
    meta = made["KeyMetadata"]
    expected = {
        "KeyState": "Enabled",
        "KeySpec": "Aliyun_AES_256",
        "KeyUsage": "ENCRYPT/DECRYPT",
        "Origin": "Aliyun_KMS",
        "ProtectionLevel": "SOFTWARE",
        # On by default here; the cloud's default is off.
        "AutomaticRotation": "Enabled",
        "RotationInterval": f"{365 * 86400}s",
        "Description": "made by the SDK lane",
    }
    for name, value in expected.items():
        same(meta[name], value, name)
    check(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", meta["CreationDate"]), "CreationDate")
    check(meta["Arn"].startswith("acs:kms:") and meta["Arn"].endswith(meta["KeyId"]), meta["Arn"])
    check(meta["PrimaryKeyVersion"], "a primary version")
    key = meta["KeyId"]
    same(metadata(key)["KeyId"], key, "described by id")
    same(metadata(meta["Arn"])["KeyId"], key, "described by ARN")
    call("UpdateKeyDescription", KeyId=key, Description="späte Änderung + 密钥 & *~")
    same(metadata(key)["Description"], "späte Änderung + 密钥 & *~", "Description")
    for spec in ["Aliyun_AES_128", "Aliyun_AES_192"]:
        same(call("CreateKey", KeySpec=spec)["KeyMetadata"]["KeySpec"], spec, "KeySpec")
    refused("Forbidden.KeyNotFound", 404, "DescribeKey", KeyId=str(uuid.uuid4()))
    refused(
        ("Forbidden.KeyNotFound", "InvalidParameter"), 404, "DescribeKey", KeyId="key-nonsense"
    )
    return key


def aliases(key, other):
    name = f"alias/sdk-{flavour}-{uuid.uuid4().hex[:8]}"
    call("CreateAlias", AliasName=name, KeyId=key)
    same(metadata(name)["KeyId"], key, "described by alias")
    refused("AliasAlreadyExists", 400, "CreateAlias", AliasName=name, KeyId=other)
    refused("InvalidParameter", 400, "CreateAlias", AliasName="no-prefix", KeyId=other)
    refused("InvalidParameter", 400, "CreateAlias", AliasName="alias/acs/kms", KeyId=other)
    found = call("ListAliasesByKeyId", KeyId=key)
    same([a["AliasName"] for a in found["Aliases"]["Alias"]], [name], "aliases of the key")
    check(found["Aliases"]["Alias"][0]["AliasArn"].endswith(name), "AliasArn")
    call("UpdateAlias", AliasName=name, KeyId=other)
    same(metadata(name)["KeyId"], other, "alias moved")
    names = paged("ListAliases", "Aliases", "Alias", "AliasName")
    check(name in names, "ListAliases has it")
    call("DeleteAlias", AliasName=name)
    gone = ("Forbidden.AliasNotFound", "Forbidden.KeyNotFound")
    refused(gone, 404, "DescribeKey", KeyId=name)
    refused("Forbidden.AliasNotFound", 404, "DeleteAlias", AliasName=name)


def paged(action, outer, inner, field, **params):
    """All items by pages of two, checked against one large page."""
    items, page = [], 1
    while True:
        answer = call(action, PageNumber=page, PageSize=2, **params)
        same((answer["PageNumber"], answer["PageSize"]), (page, 2), "the page that was asked for")
        part = [item[field] for item in answer[outer][inner]]
        check(len(part) <= 2, "a page is no larger than asked for")
        items += part
        if page * 2 >= answer["TotalCount"]:
            break
        page += 1
    same(len(items), answer["TotalCount"], "TotalCount")
    same(len(items), len(set(items)), "no item twice")
    whole = call(action, PageSize=100, **params)
    if whole["TotalCount"] <= 100:
        same([item[field] for item in whole[outer][inner]], items, "one large page")
    beyond = call(action, PageNumber=10_000, PageSize=2, **params)
    same(beyond[outer][inner], [], "a page beyond the end is empty")
    return items


def paging(key):
    check(key in paged("ListKeys", "Keys", "Key", "KeyId"), "ListKeys has it")
    same(call("ListKeys")["PageSize"], 10, "the default page size")
    refused("InvalidParameter", 400, "ListKeys", PageSize=101)
    refused("InvalidParameter", 400, "ListKeys", PageSize=0)
    refused("InvalidParameter", 400, "ListKeys", PageNumber=0)


def crypto(key, other):
    # The plaintext is an opaque text that ends up encrypted as it is.
    text = b64(b"a secret: \x00\xff + / = ~ *")
    made = call("Encrypt", KeyId=key, Plaintext=text)
    same(made["KeyId"], key, "KeyId of the answer")
    blob = base64.b64decode(made["CiphertextBlob"])
    same(blob[:36].decode("ascii"), made["KeyVersionId"], "the blob begins with its version")
    opened = call("Decrypt", CiphertextBlob=made["CiphertextBlob"])
    same((opened["Plaintext"], opened["KeyId"]), (text, key), "opened")
    same(opened["KeyVersionId"], made["KeyVersionId"], "KeyVersionId")
    again = call("Encrypt", KeyId=key, Plaintext=text)
    check(again["CiphertextBlob"] != made["CiphertextBlob"], "no ciphertext twice")
    largest = "x" * 6144
    made_largest = call("Encrypt", KeyId=key, Plaintext=largest)
    opened = call("Decrypt", CiphertextBlob=made_largest["CiphertextBlob"])
    same(opened["Plaintext"], largest, "6 KiB")
    refused("InvalidParameter", 400, "Encrypt", KeyId=key, Plaintext="x" * 6145)
    # Encryption context.
    context = {"purpose": "test", "über": "ключ 密钥"}
    bound = call("Encrypt", KeyId=key, Plaintext=text, EncryptionContext=context)["CiphertextBlob"]
    turned = dict(reversed(list(context.items())))
    opened = call("Decrypt", CiphertextBlob=bound, EncryptionContext=turned)
    same(opened["Plaintext"], text, "the order of the context does not matter")
    for wrong in [{"purpose": "another"}, {**context, "more": "x"}]:
        refused("InvalidParameter", 400, "Decrypt", CiphertextBlob=bound, EncryptionContext=wrong)
    refused("InvalidParameter", 400, "Decrypt", CiphertextBlob=bound)
    # Damage.
    damaged = blob[:-1] + bytes([blob[-1] ^ 1])
    refused("InvalidParameter", 400, "Decrypt", CiphertextBlob=b64(damaged))
    refused("InvalidParameter", 400, "Decrypt", CiphertextBlob=b64(blob[:40]))
    refused("InvalidParameter", 400, "Decrypt", CiphertextBlob="not base64!")
    data_keys(key, context)
    # Re-encryption under another key and context.
    moved = call(
        "ReEncrypt",
        CiphertextBlob=bound,
        SourceEncryptionContext=context,
        DestinationKeyId=other,
        DestinationEncryptionContext={"to": "other"},
    )
    same(moved["KeyId"], other, "under the other key")
    opened = call(
        "Decrypt", CiphertextBlob=moved["CiphertextBlob"], EncryptionContext={"to": "other"}
    )
    same((opened["Plaintext"], opened["KeyId"]), (text, other), "re-encrypted")
    # A dry run is always an error.
    refused("DryRunOperationError", 400, "Encrypt", KeyId=key, Plaintext=text, DryRun="true")


def data_keys(key, context):
    for params, size in [
        ({}, 32),
        ({"KeySpec": "AES_128"}, 16),
        ({"KeySpec": "AES_256"}, 32),
        ({"NumberOfBytes": 64}, 64),
        ({"NumberOfBytes": 1024, "KeySpec": "AES_128"}, 1024),
    ]:
        made = call("GenerateDataKey", KeyId=key, EncryptionContext=context, **params)
        same(len(base64.b64decode(made["Plaintext"])), size, f"data key {params}")
        opened = call(
            "Decrypt", CiphertextBlob=made["CiphertextBlob"], EncryptionContext=context
        )
        same(opened["Plaintext"], made["Plaintext"], "the data key opens")
    blind = call("GenerateDataKeyWithoutPlaintext", KeyId=key, NumberOfBytes=24)
    check("Plaintext" not in blind, "no plaintext")
    opened = call("Decrypt", CiphertextBlob=blind["CiphertextBlob"])
    same(len(base64.b64decode(opened["Plaintext"])), 24, "data key without plaintext")
    for size in [0, 1025]:
        refused("InvalidParameter", 400, "GenerateDataKey", KeyId=key, NumberOfBytes=size)
    refused("InvalidParameter", 400, "GenerateDataKey", KeyId=key, KeySpec="AES_512")


def versions(key):
    before = metadata(key)
    old = call("Encrypt", KeyId=key, Plaintext="old version")["CiphertextBlob"]
    made = call("CreateKeyVersion", KeyId=key)["KeyVersion"]
    same(made["KeyId"], key, "KeyId of the version")
    same(metadata(key)["PrimaryKeyVersion"], made["KeyVersionId"], "the new one is primary")
    check(made["KeyVersionId"] != before["PrimaryKeyVersion"], "another version")
    listed = paged("ListKeyVersions", "KeyVersions", "KeyVersion", "KeyVersionId", KeyId=key)
    same(set(listed), {before["PrimaryKeyVersion"], made["KeyVersionId"]}, "both versions")
    described = call("DescribeKeyVersion", KeyId=key, KeyVersionId=before["PrimaryKeyVersion"])
    same(described["KeyVersion"]["KeyVersionId"], before["PrimaryKeyVersion"], "described")
    same(call("Decrypt", CiphertextBlob=old)["Plaintext"], "old version", "old ciphertext opens")
    new = call("Encrypt", KeyId=key, Plaintext="new version")
    same(new["KeyVersionId"], made["KeyVersionId"], "the new version encrypts")
    missing = {"KeyId": key, "KeyVersionId": str(uuid.uuid4())}
    refused("Forbidden.KeyVersionNotFound", 404, "DescribeKeyVersion", **missing)


def rotation(key):
    policy = {"KeyId": key, "EnableAutomaticRotation": True, "RotationInterval": "30d"}
    call("UpdateRotationPolicy", **policy)
    meta = metadata(key)
    same(meta["AutomaticRotation"], "Enabled", "AutomaticRotation")
    same(meta["RotationInterval"], f"{30 * 86400}s", "RotationInterval in seconds")
    check(meta["NextRotationDate"] > meta["CreationDate"], "NextRotationDate")
    call("UpdateRotationPolicy", KeyId=key, EnableAutomaticRotation=False)
    same(metadata(key)["AutomaticRotation"], "Disabled", "AutomaticRotation")
    for wrong in ["6d", "731d", "soon"]:
        policy["RotationInterval"] = wrong
        refused("InvalidParameter", 400, "UpdateRotationPolicy", **policy)


def tags(key):
    pairs = [{"TagKey": "team", "TagValue": "blue"}, {"TagKey": "env", "TagValue": "prüf"}]
    call("TagResource", KeyId=key, Tags=json.dumps(pairs))
    listed = call("ListResourceTags", KeyId=key)["Tags"]["Tag"]
    same({t["TagKey"]: t["TagValue"] for t in listed}, {"team": "blue", "env": "prüf"}, "tags")
    call("UntagResource", KeyId=key, TagKeys='["team"]')
    listed = call("ListResourceTags", KeyId=key)["Tags"]["Tag"]
    same([t["TagKey"] for t in listed], ["env"], "one tag left")
    reserved = json.dumps([{"TagKey": "acs:x", "TagValue": "y"}])
    refused("InvalidParameter", 400, "TagResource", KeyId=key, Tags=reserved)


def states(key):
    sealed = call("Encrypt", KeyId=key, Plaintext="text")["CiphertextBlob"]
    call("DisableKey", KeyId=key)
    same(metadata(key)["KeyState"], "Disabled", "KeyState")
    refused("Rejected.Disabled", 409, "Encrypt", KeyId=key, Plaintext="x")
    refused("Rejected.Disabled", 409, "Decrypt", CiphertextBlob=sealed)
    refused("Rejected.Disabled", 409, "GenerateDataKey", KeyId=key)
    call("EnableKey", KeyId=key)
    same(call("Decrypt", CiphertextBlob=sealed)["Plaintext"], "text", "enabled again")
    # Deletion protection.
    arn = metadata(key)["Arn"]
    call("SetDeletionProtection", ProtectedResourceArn=arn, EnableDeletionProtection=True)
    same(metadata(key)["DeletionProtection"], "Enabled", "DeletionProtection")
    protected = ("Rejected.DeletionProtected", "Rejected.StateModifiedFailed", "Rejected.Enabled")
    refused(protected, 409, "ScheduleKeyDeletion", KeyId=key, PendingWindowInDays=7)
    call("SetDeletionProtection", ProtectedResourceArn=arn, EnableDeletionProtection=False)
    # Deletion.
    for days in [6, 367]:
        refused("InvalidParameter", 400, "ScheduleKeyDeletion", KeyId=key, PendingWindowInDays=days)
    call("ScheduleKeyDeletion", KeyId=key, PendingWindowInDays=7)
    meta = metadata(key)
    same(meta["KeyState"], "PendingDeletion", "KeyState")
    check(meta["DeleteDate"], "DeleteDate")
    refused("Rejected.PendingDeletion", 409, "Encrypt", KeyId=key, Plaintext="x")
    refused("Rejected.PendingDeletion", 409, "Decrypt", CiphertextBlob=sealed)
    pending = ("Rejected.PendingDeletion", "Rejected.StateModifiedFailed")
    refused(pending, 409, "ScheduleKeyDeletion", KeyId=key, PendingWindowInDays=7)
    refused("Rejected.StateModifiedFailed", 409, "EnableKey", KeyId=key)
    refused("Rejected.StateModifiedFailed", 409, "DisableKey", KeyId=key)
    call("CancelKeyDeletion", KeyId=key)
    same(metadata(key)["KeyState"], "Enabled", "KeyState")
    same(call("Decrypt", CiphertextBlob=sealed)["Plaintext"], "text", "alive again")
    refused("Rejected.StateModifiedFailed", 409, "CancelKeyDeletion", KeyId=key)


def service():
    regions = call("DescribeRegions")["Regions"]["Region"]
    check(regions and regions[0]["RegionId"], "a region")
    check(call("DescribeAccountKmsStatus")["AccountStatus"], "AccountStatus")
    refused("MissingParameter", 400, "Encrypt", Plaintext="x")
    refused("Rejected.UnsupportedOperation", 400, "GetRandomPassword")


def strangers():
    global call
    ours = call
    try:
        # The old SDK shows a code of its own making for a signature that does not match.
        mismatch = ("SignatureDoesNotMatch", "InvalidAccessKeySecret")
        call = make(flavour, credentials, secret="not-the-secret-of-this-key").call
        refused(mismatch, 400, "ListKeys")
        call = make(flavour, credentials, key_id="LTAInobodyknowsthis").call
        refused("InvalidAccessKeyId.NotFound", 404, "ListKeys")
    finally:
        call = ours


key, other = keys(), keys()
aliases(key, other)
paging(key)
crypto(key, other)
versions(key)
rotation(key)
tags(key)
states(key)
service()
strangers()
print(f"{flavour}: {checks} checks")
