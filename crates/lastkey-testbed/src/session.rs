//! A connection that is kept, for whoever sends many requests and has to know what became of each.

use crate::message::{Answer, Request};
use crate::{Client, Error};
use serde_json::Value as Json;
use std::io::{BufReader, Read, Write};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    /// Nobody has got it.
    #[error("not sent: {0}")]
    NotSent(Error),
    /// It may have been carried out.
    #[error("lost: {0}")]
    Lost(Error),
}

pub(crate) trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// One connection to the server of a [`Client`], made anew after it broke.
pub struct Session {
    client: Client,
    stream: Option<BufReader<Box<dyn Stream>>>,
}

impl Session {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, stream: None }
    }

    /// Sends JSON, or nothing.
    ///
    /// # Errors
    /// [`Unanswered`], which tells whether it can have been carried out.
    pub fn send(
        &mut self,
        method: &str,
        path: &str,
        body: Option<&Json>,
    ) -> Result<Answer, Unanswered> {
        let headers = [("accept", "application/json"), ("content-type", "application/json")];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let body = body.map(ToString::to_string).unwrap_or_default().into_bytes();
        self.forward(Request { method: method.into(), target: path.into(), headers, body })
    }

    /// Sends a request with its headers as they are.
    ///
    /// # Errors
    /// As [`Session::send`].
    pub fn forward(&mut self, mut request: Request) -> Result<Answer, Unanswered> {
        let because = |cause: String| Error::Request {
            method: request.method.clone(),
            url: format!("{}{}", self.client.address(), request.target),
            cause,
        };
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                let stream = self.client.connect().map_err(|e| Unanswered::NotSent(because(e)))?;
                BufReader::new(stream)
            }
        };
        let lost = |error: std::io::Error| Unanswered::Lost(because(error.to_string()));
        request.headers.retain(|(name, _)| name != "host");
        request.headers.push(("host".to_owned(), self.client.address().to_owned()));
        request.write(stream.get_mut()).map_err(lost)?;
        let answer = Answer::read(&mut stream).map_err(lost)?;
        if answer.header("connection") != Some("close") {
            self.stream = Some(stream);
        }
        Ok(answer)
    }
}
