//! Operations on the service as a whole.

use lastkey_engine::command::DescribeService;

use super::call::{Answer, Call};

/// The one operation that leaves no audit record, in the cloud as here: SDKs call it to find
/// out where they are.
pub(super) async fn describe_regions(call: &Call<'_>) -> Answer {
    call.answer(|answer| {
        answer.list(("Regions", "Region"), [&call.place.region], |entry, region| {
            entry.text("RegionId", region);
        });
    })
}

pub(super) async fn describe_account_kms_status(call: &Call<'_>) -> Answer {
    call.execute(DescribeService).await?;
    call.answer(|answer| answer.plain("AccountStatus", "Enabled"))
}

/// There is nothing to open: who reaches this has it already.
pub(super) async fn open_kms_service(call: &Call<'_>) -> Answer {
    call.execute(DescribeService).await?;
    call.done()
}
