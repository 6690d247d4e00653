//! Standard output: a record a line, behind whatever the process itself prints first.

use std::{fs::File, io, io::Write as _, os::fd::AsFd as _, sync::Arc};

use crate::{StartError, target::DeliveryError};

/// A descriptor of its own, so that nobody else waits when the reader does not read.
pub(crate) struct Stdout(Arc<File>);

impl Stdout {
    pub(crate) fn open() -> Result<Self, StartError> {
        let own = io::stdout().as_fd().try_clone_to_owned();
        let own = own.map_err(|source| StartError::Stdout { source })?;
        Ok(Self(Arc::new(File::from(own))))
    }

    pub(crate) async fn deliver(&mut self, lines: &[Vec<u8>]) -> Result<(), DeliveryError> {
        let mut bytes = lines.join(&b'\n');
        bytes.push(b'\n');
        let file = Arc::clone(&self.0);
        let write = tokio::task::spawn_blocking(move || (&*file).write_all(&bytes));
        write.await.map_err(io::Error::other)??;
        Ok(())
    }
}
