//! `lastkey status`.

use crate::{
    cli::Connect,
    connect::{block_on, client},
    output::{Failure, Output, fields},
};

pub(crate) fn run(connect: &Connect, output: &Output) -> Result<(), Failure> {
    let client = client(connect)?;
    let mut status = block_on(async { Ok(client.status().await?) })?;
    if output.is_json() {
        output.object(&status, String::new);
        return Ok(());
    }
    let warnings = status.as_object_mut().and_then(|status| status.remove("warnings"));
    output.object(&status, || fields(&status));
    for warning in warnings.iter().flat_map(|list| list.as_array()).flatten() {
        output.hint(&format!("warning: {}", warning.as_str().unwrap_or_default()));
    }
    Ok(())
}
