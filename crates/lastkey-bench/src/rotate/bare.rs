//! Bare workers: a list by pages, every object written back as it is, nothing else.

use std::{io::Write as _, time::Instant};

use futures_util::{StreamExt as _, stream};
use lastkey_kubernetes::cluster::{ApiServer, Kubeconfig, ListQuery, Shape};

use crate::{error::Error, options::BareOptions};

/// Prints how many seconds it took, from the first list to the last write.
pub(crate) fn run(options: &BareOptions) -> Result<(), Error> {
    // As the command line has it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let seconds = runtime.block_on(write_back(options))?;
    Ok(writeln!(std::io::stdout().lock(), "{seconds}")?)
}

async fn write_back(options: &BareOptions) -> Result<f64, Error> {
    let other = |error: &dyn std::fmt::Display| std::io::Error::other(error.to_string());
    let read = Kubeconfig::read(&options.kubeconfig).map_err(|error| other(&error))?;
    let api = ApiServer::new(&read.access).map_err(|error| other(&error))?;
    let served = api.discover().await.map_err(|error| other(&error))?;
    let secrets = served.matching("secrets").next();
    let secrets = secrets.ok_or_else(|| other(&"no Secrets are served"))?;
    let begun = Instant::now();
    let mut next: Option<String> = None;
    loop {
        let query = ListQuery {
            namespace: None,
            limit: options.page,
            next: next.as_deref(),
            shape: Shape::Whole,
        };
        let page = api.list(secrets, &query).await.map_err(|error| other(&error))?;
        let writes = page.objects.iter().map(|object| api.put_back(secrets, object));
        let mut writes = stream::iter(writes).buffer_unordered(options.workers);
        while let Some(written) = writes.next().await {
            written.map_err(|error| other(&error))?;
        }
        drop(writes);
        next = page.next;
        if next.is_none() {
            return Ok(begun.elapsed().as_secs_f64());
        }
    }
}
