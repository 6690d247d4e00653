//! The Alibaba wire over a real connection: operations, formats, errors.
#![allow(clippy::unwrap_used, reason = "clippy takes helpers of tests for library code")]

mod support;

use http::StatusCode;
use support::{Signer, redact, rpc, start};

#[tokio::test(flavor = "multi_thread")]
async fn a_key_lives_and_works() {
    let server = start().await;
    let created = server
        .call(
            "CreateKey",
            &[
                ("Description", "für \"Tests\" <1>"),
                ("Tags", r#"[{"TagKey":"team","TagValue":"a"}]"#),
                ("EnableAutomaticRotation", "true"),
                ("RotationInterval", "7d"),
            ],
        )
        .await;
    insta::assert_snapshot!(redact(&created.text));
    let key = created.ok()["KeyMetadata"]["KeyId"].as_str().unwrap().to_owned();

    let alias = [("AliasName", "alias/app"), ("KeyId", &key)];
    server.call("CreateAlias", &alias).await.ok();
    let again = server.call("CreateAlias", &alias).await;
    assert_eq!(again.error(), (400, "AliasAlreadyExists".to_owned()));

    let arn = format!("acs:kms:cn-hangzhou:1:key/{key}");
    for name in [&key, "alias/app", &arn, "acs:kms:local:lastkey:alias/app"] {
        let described = server.call("DescribeKey", &[("KeyId", name)]).await.ok();
        assert_eq!(described["KeyMetadata"]["KeyId"], key.as_str(), "{name}");
    }

    let context = ("EncryptionContext", r#"{"b":"2","a":"1"}"#);
    let encrypted = server
        .call("Encrypt", &[("KeyId", "alias/app"), ("Plaintext", "hällo+/=&"), context])
        .await
        .ok();
    let blob = encrypted["CiphertextBlob"].as_str().unwrap();
    let other_order = ("EncryptionContext", r#"{"a":"1","b":"2"}"#);
    let decrypted = server.call("Decrypt", &[("CiphertextBlob", blob), other_order]).await.ok();
    assert_eq!(decrypted["Plaintext"], "hällo+/=&");
    assert_eq!(decrypted["KeyId"], key.as_str());
    let without = server.call("Decrypt", &[("CiphertextBlob", blob)]).await;
    assert_eq!(without.error(), (400, "InvalidParameter".to_owned()));

    let made = server.call("GenerateDataKey", &[("KeyId", &key)]).await.ok();
    let blob = made["CiphertextBlob"].as_str().unwrap();
    assert_eq!(made["Plaintext"].as_str().unwrap().len(), 44);
    let opened = server.call("Decrypt", &[("CiphertextBlob", blob)]).await.ok();
    assert_eq!(opened["Plaintext"], made["Plaintext"]);
    let sized = [("KeyId", key.as_str()), ("KeySpec", "AES_128"), ("NumberOfBytes", "3")];
    let made = server.call("GenerateDataKey", &sized).await.ok();
    assert_eq!(made["Plaintext"].as_str().unwrap().len(), 4);
    let made = server.call("GenerateDataKeyWithoutPlaintext", &sized[..2]).await.ok();
    assert!(made["CiphertextBlob"].is_string() && made.get("Plaintext").is_none());

    let rotated = server.call("CreateKeyVersion", &[("KeyId", &key)]).await.ok();
    let version = rotated["KeyVersion"]["KeyVersionId"].as_str().unwrap().to_owned();
    let which = [("KeyId", key.as_str()), ("KeyVersionId", &version)];
    server.call("DescribeKeyVersion", &which).await.ok();
    let moved = server
        .call("ReEncrypt", &[("CiphertextBlob", blob), ("DestinationKeyId", &key)])
        .await
        .ok();
    assert_eq!(moved["KeyVersionId"], version.as_str());
    let versions = server.call("ListKeyVersions", &[("KeyId", &key)]).await.ok();
    assert_eq!(versions["TotalCount"], 2);

    server.call("DisableKey", &[("KeyId", &key)]).await.ok();
    let refused = server.call("Encrypt", &[("KeyId", &key), ("Plaintext", "x")]).await;
    assert_eq!(refused.error(), (409, "Rejected.Disabled".to_owned()));
    server.call("EnableKey", &[("KeyId", &key)]).await.ok();
    let update = [("KeyId", key.as_str()), ("EnableAutomaticRotation", "false")];
    server.call("UpdateRotationPolicy", &update).await.ok();
    server.call("UpdateKeyDescription", &[("KeyId", &key), ("Description", "")]).await.ok();
    let protect = [("ProtectedResourceArn", arn.as_str()), ("EnableDeletionProtection", "true")];
    server.call("SetDeletionProtection", &protect).await.ok();
    let delete = [("KeyId", key.as_str()), ("PendingWindowInDays", "7")];
    assert_eq!(server.call("ScheduleKeyDeletion", &delete).await.status, StatusCode::CONFLICT);
    let protect = [("KeyId", key.as_str()), ("EnableDeletionProtection", "false")];
    server.call("SetDeletionProtection", &protect).await.ok();
    server.call("ScheduleKeyDeletion", &delete).await.ok();
    let described = server.call("DescribeKey", &[("KeyId", &key)]).await;
    insta::assert_snapshot!(redact(&described.text));
    server.call("CancelKeyDeletion", &[("KeyId", &key)]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_in_json_and_xml() {
    let server = start().await;
    for _ in 0..3 {
        server.call("CreateKey", &[("Description", "a & b")]).await.ok();
    }
    let page = [("PageNumber", "2"), ("PageSize", "2")];
    insta::assert_snapshot!("keys_json", redact(&server.call("ListKeys", &page).await.text));
    let xml = server.call("ListKeys", &[page[0], page[1], ("Format", "xml")]).await;
    assert_eq!(xml.headers["content-type"], "text/xml;charset=utf-8");
    insta::assert_snapshot!("keys_xml", redact(&xml.text));

    let keys = server.call("ListKeys", &[]).await.ok();
    let ids: Vec<&str> = keys["Keys"]["Key"]
        .as_array()
        .unwrap()
        .iter()
        .map(|k| k["KeyId"].as_str().unwrap())
        .collect();
    server.call("DisableKey", &[("KeyId", ids[0])]).await.ok();
    let filter = r#"[{"Key":"KeyState","Values":["Disabled"]},{"Key":"KeySpec","Values":["Aliyun_AES_256"]}]"#;
    let disabled = server.call("ListKeys", &[("Filters", filter)]).await.ok();
    assert_eq!(disabled["TotalCount"], 1);
    assert_eq!(disabled["Keys"]["Key"][0]["KeyId"], ids[0]);

    server.call("CreateAlias", &[("AliasName", "alias/x"), ("KeyId", ids[1])]).await.ok();
    server.call("UpdateAlias", &[("AliasName", "alias/x"), ("KeyId", ids[2])]).await.ok();
    let aliases = server.call("ListAliases", &[("Format", "XML")]).await;
    insta::assert_snapshot!("aliases_xml", redact(&aliases.text));
    let of_key = server.call("ListAliasesByKeyId", &[("KeyId", ids[2])]).await.ok();
    assert_eq!(of_key["Aliases"]["Alias"][0]["AliasName"], "alias/x");
    server.call("DeleteAlias", &[("AliasName", "alias/x")]).await.ok();
    assert_eq!(server.call("ListAliases", &[]).await.ok()["TotalCount"], 0);

    let missing = server.call("DescribeKey", &[("KeyId", "alias/none"), ("Format", "XML")]).await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    insta::assert_snapshot!("error_xml", redact(&missing.text));
    let missing = server.call("DescribeKey", &[("KeyId", "alias/none")]).await;
    insta::assert_snapshot!("error_json", redact(&missing.text));
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_old_and_new() {
    let server = start().await;
    let created = server.call("CreateKey", &[]).await.ok();
    let key = created["KeyMetadata"]["KeyId"].as_str().unwrap();
    let tags = r#"[{"TagKey":"a","TagValue":"1"},{"TagKey":"b","TagValue":"2"}]"#;
    server.call("TagResource", &[("KeyId", key), ("Tags", tags)]).await.ok();
    server
        .call(
            "TagResources",
            &[
                ("RegionId", "cn-hangzhou"),
                ("ResourceType", "key"),
                ("ResourceId.1", key),
                ("Tag.1.Key", "c"),
                ("Tag.1.Value", "3"),
                ("Tag.2.Key", "d"),
            ],
        )
        .await
        .ok();
    let listed = server.call("ListResourceTags", &[("KeyId", key)]).await;
    insta::assert_snapshot!(redact(&listed.text));
    let resources = [("ResourceType", "KEY"), ("Tag.1.Key", "c")];
    let found = server.call("ListTagResources", &resources).await.ok();
    assert_eq!(found["TagResources"]["TagResource"].as_array().unwrap().len(), 4);
    server.call("UntagResource", &[("KeyId", key), ("TagKeys", r#"["a"]"#)]).await.ok();
    let untag = [("ResourceType", "key"), ("ResourceId", key), ("All", "true")];
    assert_eq!(server.call("UntagResources", &untag).await.error().0, 400);
    let json = format!("[\"{key}\"]");
    let untag = [("ResourceType", "key"), ("ResourceId", &json), ("TagKey.1", "b")];
    server.call("UntagResources", &untag).await.ok();
    let untag = [("ResourceType", "key"), ("ResourceId.1", key), ("All", "true")];
    server.call("UntagResources", &untag).await.ok();
    let left = server.call("ListResourceTags", &[("KeyId", key)]).await.ok();
    assert_eq!(left["Tags"]["Tag"].as_array().unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_protocol_by_query_and_form() {
    let server = start().await;
    for method in ["GET", "POST"] {
        let created = server.send(rpc(&server, method, "CreateKey", &[("Format", "JSON")])).await;
        let key = created.ok()["KeyMetadata"]["KeyId"].as_str().unwrap().to_owned();
        let params = [("KeyId", key.as_str()), ("Plaintext", "a b*~+")];
        let encrypted = server.send(rpc(&server, method, "Encrypt", &params)).await.ok();
        let blob = encrypted["CiphertextBlob"].as_str().unwrap();
        let params = [("CiphertextBlob", blob)];
        let decrypted = server.send(rpc(&server, method, "Decrypt", &params)).await.ok();
        assert_eq!(decrypted["Plaintext"], "a b*~+");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn forms_are_read_under_a_header_signature() {
    let server = start().await;
    let mut signer = Signer::new(&server, "CreateKey");
    let form = "application/x-www-form-urlencoded".to_owned();
    signer.headers.push(("content-type".to_owned(), form));
    let created = server.send(signer.sign(("POST", "/"), &[], b"Description=a+b%20c")).await.ok();
    assert_eq!(created["KeyMetadata"]["Description"], "a b c");
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_is_spoken() {
    let server = start().await;
    let mut request = server.signed("DescribeRegions", &[]);
    request.headers_mut().remove("host");
    *request.uri_mut() = "https://localhost/".parse().unwrap();
    let regions = server.send_h2(request).await.ok();
    assert_eq!(regions["Regions"]["Region"][0]["RegionId"], "local");
    let status = server.call("DescribeAccountKmsStatus", &[]).await.ok();
    assert_eq!(status["AccountStatus"], "Enabled");
    server.call("OpenKmsService", &[]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_offered_says_so() {
    let server = start().await;
    let code =
        async |action: &str, params: &[(&str, &str)]| server.call(action, params).await.error();
    let unsupported = (400, "Rejected.UnsupportedOperation".to_owned());
    assert_eq!(code("CreateSecret", &[]).await, unsupported);
    assert_eq!(code("CreateKey", &[("KeySpec", "RSA_2048")]).await, unsupported);
    assert_eq!(code("CreateKey", &[("Origin", "EXTERNAL")]).await, unsupported);
    assert_eq!(code("CreateKey", &[("ProtectionLevel", "HSM")]).await, unsupported);
    for mechanism in ["HsmInternal", "HsmEncryptedDatabase"] {
        assert_eq!(code("CreateKey", &[("KeyStorageMechanism", mechanism)]).await, unsupported);
    }
    assert_eq!(server.call("ListKeys", &[]).await.ok()["TotalCount"], 0);
    assert_eq!(code("Frobnicate", &[]).await, (404, "InvalidAction.NotFound".to_owned()));
    assert_eq!(code("DescribeKey", &[]).await, (400, "MissingParameter".to_owned()));
    let not_found = (404, "Forbidden.KeyNotFound".to_owned());
    assert_eq!(code("DescribeKey", &[("KeyId", "nonsense")]).await, not_found);
    let invalid = (400, "InvalidParameter".to_owned());
    assert_eq!(code("ListKeys", &[("PageSize", "101")]).await, invalid);
    assert_eq!(code("ListKeys", &[("PageSize", "x")]).await, invalid);
    assert_eq!(code("ListKeys", &[("Filters", "{}")]).await, invalid);
    assert_eq!(code("Decrypt", &[("CiphertextBlob", "not base64")]).await, invalid);
    let interval = [("EnableAutomaticRotation", "true"), ("RotationInterval", "7w")];
    assert_eq!(code("CreateKey", &interval).await, invalid);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_version_that_is_named_must_be_the_ciphertexts() {
    let server = start().await;
    let key = server.call("CreateKey", &[]).await.ok();
    let key = key["KeyMetadata"]["KeyId"].as_str().unwrap();
    let made = server.call("Encrypt", &[("KeyId", key), ("Plaintext", "x")]).await.ok();
    let [blob, old] =
        ["CiphertextBlob", "KeyVersionId"].map(|name| made[name].as_str().unwrap().to_owned());
    let rotated = server.call("CreateKeyVersion", &[("KeyId", key)]).await.ok();
    let new = rotated["KeyVersion"]["KeyVersionId"].as_str().unwrap().to_owned();
    let moved = async |version: &str| {
        let from = [("CiphertextBlob", &*blob), ("SourceKeyId", key), ("DestinationKeyId", key)];
        let call = [&from[..], &[("SourceKeyVersionId", version)]].concat();
        server.call("ReEncrypt", &call).await
    };
    moved(&old).await.ok();
    moved("").await.ok();
    assert_eq!(moved(&new).await.error(), (400, "InvalidParameter".to_owned()));
    assert_eq!(moved("x").await.error(), (404, "Forbidden.KeyVersionNotFound".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_go_to_all_of_several_resources_or_to_none() {
    let server = start().await;
    let mut keys = Vec::new();
    for _ in 0..2 {
        let made = server.call("CreateKey", &[]).await.ok();
        keys.push(made["KeyMetadata"]["KeyId"].as_str().unwrap().to_owned());
    }
    let [open, doomed] = [&*keys[0], &*keys[1]];
    server
        .call("ScheduleKeyDeletion", &[("KeyId", doomed), ("PendingWindowInDays", "7")])
        .await
        .ok();
    let both = [("ResourceType", "key"), ("ResourceId.1", open), ("ResourceId.2", doomed)];
    let tag = [&both[..], &[("Tag.1.Key", "z"), ("Tag.1.Value", "p")]].concat();
    let refused = server.call("TagResources", &tag).await.error();
    assert_eq!(refused, (409, "Rejected.PendingDeletion".to_owned()));
    let count = async || {
        let tags = server.call("ListResourceTags", &[("KeyId", open)]).await.ok();
        tags["Tags"]["Tag"].as_array().unwrap().len()
    };
    assert_eq!(count().await, 0);
    server.call("CancelKeyDeletion", &[("KeyId", doomed)]).await.ok();
    server.call("TagResources", &tag).await.ok();
    assert_eq!(count().await, 1);
    let lost = [("ResourceType", "key"), ("ResourceId.1", open), ("ResourceId.2", "alias/none")];
    let untag = [&lost[..], &[("All", "true")]].concat();
    assert_eq!(server.call("UntagResources", &untag).await.error().0, 404);
    assert_eq!(count().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_be_meant_as_a_dry_run_is_not_carried_out() {
    let server = start().await;
    let key = server.call("CreateKey", &[]).await.ok();
    let key = key["KeyMetadata"]["KeyId"].as_str().unwrap();
    for dry in ["1", "yes", "x", "true "] {
        let delete = [("KeyId", key), ("PendingWindowInDays", "7"), ("DryRun", dry)];
        let error = server.call("ScheduleKeyDeletion", &delete).await.error();
        assert_eq!(error, (400, "InvalidParameter".to_owned()), "{dry}");
    }
    let state = server.call("DescribeKey", &[("KeyId", key)]).await.ok();
    assert_eq!(state["KeyMetadata"]["KeyState"], "Enabled");
    server.call("DisableKey", &[("KeyId", key), ("DryRun", "False")]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn dry_runs_end_in_an_error() {
    let server = start().await;
    let key = server.call("CreateKey", &[]).await.ok();
    let key = key["KeyMetadata"]["KeyId"].as_str().unwrap();
    let dry = ("DryRun", "True");
    let encrypt = [("KeyId", key), ("Plaintext", "x"), dry];
    let error = server.call("Encrypt", &encrypt).await.error();
    assert_eq!(error, (400, "DryRunOperationError".to_owned()));
    let encrypt = [("KeyId", "alias/none"), ("Plaintext", "x"), dry];
    let error = server.call("Encrypt", &encrypt).await.error();
    assert_eq!(error, (400, "ValidationError".to_owned()));
    server.call("DisableKey", &[("KeyId", key), dry]).await;
    let state = server.call("DescribeKey", &[("KeyId", key)]).await.ok();
    assert_eq!(state["KeyMetadata"]["KeyState"], "Enabled");
}
