//! Calls to Lastkey's server that outlast its absence.

use std::{
    future::Future,
    sync::atomic::{AtomicBool, Ordering},
};

use lastkey_client::{Category, Error};

use super::{ASK_EVERY, RotateError};

/// Asks until the server answers, and says once that it is away. Whatever is asked so may be asked
/// twice.
///
/// # Errors
/// [`RotateError::Interrupted`] once `stop` is set. The inner error is the server's own word, or that
/// it is not the one that was meant.
pub(super) async fn outlast<T, F: Future<Output = Result<T, Error>>>(
    stop: &AtomicBool,
    away: impl Fn(String),
    call: impl Fn() -> F,
) -> Result<Result<T, Error>, RotateError> {
    let mut told = false;
    loop {
        match call().await {
            Err(error) if is_outage(&error) => {
                if !std::mem::replace(&mut told, true) {
                    away(error.to_string());
                }
            }
            answer => return Ok(answer),
        }
        if stop.load(Ordering::Relaxed) {
            return Err(RotateError::Interrupted);
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// Whether the same call may work later: nobody is there, or who is there is sealed or overloaded.
fn is_outage(error: &Error) -> bool {
    match error {
        Error::Unreachable { .. } | Error::Broken { .. } | Error::Timeout { .. } => true,
        Error::Api(error) => error.category() == Category::Unavailable,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, time::Duration};

    use super::*;

    fn broken() -> Error {
        Error::Broken { server: "https://a".into(), reason: "reset".into() }
    }

    fn silent() -> Error {
        Error::Timeout { server: "https://a".into(), after: Duration::from_secs(5) }
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_waited_for_and_told_once() {
        let (stop, asked, told) = (AtomicBool::new(false), Cell::new(0), Cell::new(0));
        let call = || {
            asked.set(asked.get() + 1);
            let answer = match asked.get() {
                1 => Err(broken()),
                2..9 => Err(silent()),
                _ => Ok(7),
            };
            async { answer }
        };
        let answer = outlast(&stop, |_| told.set(told.get() + 1), call).await;
        assert_eq!(answer.unwrap().unwrap(), 7);
        assert_eq!((asked.get(), told.get()), (9, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_interrupted_waits_no_longer() {
        let stop = AtomicBool::new(true);
        let answer: Result<Result<(), _>, _> =
            outlast(&stop, |_| {}, || async { Err(broken()) }).await;
        assert!(matches!(answer, Err(RotateError::Interrupted)));
    }

    #[tokio::test(start_paused = true)]
    async fn another_server_is_no_outage() {
        let call = || async {
            Err::<(), _>(Error::Tls { server: "https://a".into(), reason: "unknown CA".into() })
        };
        let answer = outlast(&AtomicBool::new(false), |_| panic!("it is there"), call).await;
        assert!(matches!(answer, Ok(Err(Error::Tls { .. }))));
    }
}
