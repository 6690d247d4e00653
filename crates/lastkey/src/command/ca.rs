//! `lastkey ca …`.

use serde_json::json;

use crate::{
    cli::{CaAction, Connect},
    connect::{block_on, client},
    output::{Failure, Output, fields},
};

pub(crate) fn run(connect: &Connect, action: CaAction, output: &Output) -> Result<(), Failure> {
    let client = client(connect)?;
    block_on(async {
        match action {
            CaAction::Print => {
                let pem = client.ca().await?;
                output.object(&json!({ "certificate_pem": pem }), || pem.trim_end().to_owned());
            }
            CaAction::Renew => {
                let renewed = client.renew_server_certificate().await?;
                output.object(&renewed, || {
                    format!("the server has a new certificate\n{}", fields(&renewed))
                });
            }
        }
        Ok(())
    })
}
