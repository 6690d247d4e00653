//! Operations on aliases.

use lastkey_engine::{
    Listing,
    command::{AliasEntry, CreateAlias, DeleteAlias, ListAliases, ListAliasesByKeyId, UpdateAlias},
};

use super::call::{Answer, Call};

pub(super) async fn create_alias(call: &Call<'_>) -> Answer {
    call.execute(CreateAlias { alias: call.alias()?, key: call.key()? }).await?;
    call.done()
}

pub(super) async fn update_alias(call: &Call<'_>) -> Answer {
    call.execute(UpdateAlias { alias: call.alias()?, key: call.key()? }).await?;
    call.done()
}

pub(super) async fn delete_alias(call: &Call<'_>) -> Answer {
    call.execute(DeleteAlias { alias: call.alias()? }).await?;
    call.done()
}

pub(super) async fn list_aliases(call: &Call<'_>) -> Answer {
    let list = call.execute(ListAliases { page: call.page()? }).await?;
    write(call, &list)
}

pub(super) async fn list_aliases_by_key_id(call: &Call<'_>) -> Answer {
    let list = call.execute(ListAliasesByKeyId { key: call.key()?, page: call.page()? }).await?;
    write(call, &list)
}

fn write(call: &Call<'_>, list: &Listing<AliasEntry>) -> Answer {
    call.answer(|answer| {
        answer.list(("Aliases", "Alias"), &list.items, |entry, alias| {
            entry.plain("KeyId", alias.key_id);
            entry.text("AliasName", alias.name.as_str());
            entry.text("AliasArn", &call.arn(format_args!("{}", alias.name)));
        });
        super::paging(answer, list);
    })
}
