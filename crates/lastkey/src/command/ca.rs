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
                    let done = match renewed["from_files"] == true {
                        true => {
                            "the certificate is your own: its files were read again, and whoever \
                             issued it renews it"
                        }
                        false => "the server has a new certificate",
                    };
                    let ends = json!({ "not_after": renewed["not_after"] });
                    format!("{done}\n{}", fields(&ends))
                });
            }
        }
        Ok(())
    })
}
