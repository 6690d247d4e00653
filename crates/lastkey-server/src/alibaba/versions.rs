//! Operations on key versions and rotation.

use lastkey_engine::{
    Error, KeyVersion, RotationPolicy,
    command::{CreateKeyVersion, DescribeKeyVersion, ListKeyVersions, UpdateRotationPolicy},
};

use super::{
    call::{Answer, Call},
    document::Document,
};

pub(super) async fn create_key_version(call: &Call<'_>) -> Answer {
    let version = call.execute(CreateKeyVersion { key: call.key()? }).await?;
    call.answer(|answer| answer.object("KeyVersion", |answer| write(answer, &version)))
}

pub(super) async fn describe_key_version(call: &Call<'_>) -> Answer {
    let command = DescribeKeyVersion { key: call.key()?, version: call.key_version()? };
    let version = call.execute(command).await?;
    call.answer(|answer| answer.object("KeyVersion", |answer| write(answer, &version)))
}

pub(super) async fn list_key_versions(call: &Call<'_>) -> Answer {
    let list = call.execute(ListKeyVersions { key: call.key()?, page: call.page()? }).await?;
    call.answer(|answer| {
        answer.list(("KeyVersions", "KeyVersion"), &list.items, write);
        super::paging(answer, &list);
    })
}

fn write(answer: &mut Document, version: &KeyVersion) {
    answer.plain("KeyId", version.key_id);
    answer.plain("KeyVersionId", version.id);
    answer.plain("CreationDate", version.created.to_seconds_text());
    // Ours alone; clients of the original ignore what they do not know.
    answer.count("Encryptions", version.uses);
    if let Some(last) = &version.last_use {
        answer.plain("LastUsedDate", last.at.to_seconds_text());
        answer.text("LastUsedBy", &last.by);
        answer.plain("LastUsedFor", &last.action);
    }
    answer.boolean("NeverUsed", version.never_used());
    answer.plain("State", version.state().name());
    if let Some(at) = version.retirement.as_ref().and_then(|retired| retired.destroy_at) {
        answer.plain("DestroyDate", at.to_seconds_text());
    }
}

pub(super) async fn update_rotation_policy(call: &Call<'_>) -> Answer {
    let enabled = call
        .boolean("EnableAutomaticRotation")?
        .ok_or(Error::MissingParameter("EnableAutomaticRotation"))?;
    let interval = call.interval("RotationInterval")?;
    if enabled && interval.is_none() {
        return Err(Error::MissingParameter("RotationInterval").into());
    }
    let policy = RotationPolicy::new(enabled, interval)?;
    call.execute(UpdateRotationPolicy { key: call.key()?, policy }).await?;
    call.done()
}
