//! Why an operator's order was not carried out.

use crate::{
    Error, ErrorKind, Life, SealError, StartError,
    seal::{SealKind, ShareRefused},
};

/// Why an operator's order was not carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OperatorError {
    /// The share was not taken.
    #[error(transparent)]
    Share(#[from] ShareRefused),
    /// There is a root key already.
    #[error("this server was initialised before; its shares are with their keepers")]
    Initialised,
    /// There is a root key, which nobody has proven to have shares of.
    #[error(
        "this server was initialised before, and never unsealed; if nobody has its shares, because \
         the answer of `lastkey operator init` was lost, nothing is lost with them: stop it, move \
         its data directory away, start it again with --seal shamir, and run `lastkey operator init`"
    )]
    NeverUnsealed,
    /// There is no root key yet.
    #[error("this server has no root key yet: run `lastkey operator init` first")]
    Uninitialised,
    /// There is a root key, which shares do not give back.
    #[error(
        "the root key of this server is kept by a {0} seal, and there are no shares of it; `lastkey \
         operator migrate --to shamir --shares N --threshold K` makes them (--seal is for a new data \
         directory alone)"
    )]
    NoShares(SealKind),
    /// The seal takes no shares.
    #[error("the {0} seal of this server takes no shares")]
    TakesNoShares(SealKind),
    /// Threshold or number of shares.
    #[error("give a threshold from 2 to the number of shares, and at most 255 shares")]
    Splitting,
    /// Not in this state.
    #[error(
        "the server is {0}; {advice}",
        advice = match .0 {
            Life::Held => "`lastkey operator status` says why, and `lastkey operator accept-restore \
                           --reason TEXT` goes on with what is there",
            _ => "this needs another state",
        }
    )]
    State(Life),
    /// New shares wait to be entered.
    #[error(
        "new shares wait to be entered: end that with `lastkey operator confirm`, or drop them \
         with `lastkey operator cancel`: whoever holds one holds nothing then"
    )]
    Pending,
    /// No new shares wait.
    #[error("no new shares wait to be entered")]
    NothingPending,
    /// Shares are being entered for something else.
    #[error(
        "shares are being entered for another order: {0}; this one was not taken: go on with that \
         order, or drop what was entered for it with `lastkey operator cancel` (new shares that \
         wait to be confirmed stay)"
    )]
    OtherOrder(String),
    /// A token is to keep the root key, and nobody said which.
    #[error(
        "no token was named, and the server was started without one: name it with --pkcs11-module, \
         --pkcs11-token and --pkcs11-pin-file, on the admin socket"
    )]
    NoToken,
    /// The seal is of that kind already.
    #[error(
        "the seal is {0} already; {how}",
        how = match .0 {
            SealKind::Shamir => "`lastkey operator rekey` makes new shares",
            _ => "`lastkey operator rotate root` makes a new root key under it",
        }
    )]
    SameSeal(SealKind),
    /// This process has another root key than the store's record of its seal names.
    #[error(
        "the store's record of its seal names another root key than this server works with; \
         nothing was changed: restart the server"
    )]
    OtherRoot,
    /// The seal refused.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The engine did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Enough shares were entered, and the engine did not start.
    #[error(
        "{0}; the shares gave their key and are dropped: once that is put right, enter all of them \
         again"
    )]
    AllAgain(#[source] StartError),
    /// The engine refused.
    #[error(transparent)]
    Engine(#[from] Error),
    /// Too many shares in a short time.
    #[error("too many shares in a short time; try again in some seconds")]
    Busy,
}

impl OperatorError {
    /// Why enough shares did not open. A store that is held keeps what they gave.
    pub(super) fn opening_by_shares(error: StartError) -> Self {
        match error {
            StartError::Held { .. } => Self::Start(error),
            error => Self::AllAgain(error),
        }
    }

    /// The stable code, as the native wire spells it.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Share(ShareRefused::Share(_)) => "InvalidShare",
            Self::Share(ShareRefused::Duplicate { .. }) => "InvalidShare.Duplicate",
            Self::Share(ShareRefused::DoNotCombine) => "InvalidShare.NotGenuine",
            Self::Share(_) => "InvalidShare.OtherSet",
            Self::Initialised | Self::NeverUnsealed => "Rejected.Initialised",
            Self::Uninitialised => "Rejected.Uninitialised",
            Self::NoShares(_) | Self::TakesNoShares(_) | Self::SameSeal(_) => "Rejected.SealKind",
            Self::Splitting => "InvalidParameter",
            Self::State(_) => "Rejected.StateModifiedFailed",
            Self::Pending => "Rejected.Pending",
            Self::NothingPending => "Rejected.NothingPending",
            Self::OtherOrder(_) => "Rejected.OtherOrder",
            Self::OtherRoot | Self::NoToken => "Rejected.Seal",
            Self::Seal(error)
            | Self::Start(StartError::Seal(error))
            | Self::AllAgain(StartError::Seal(error)) => match error {
                SealError::NeedsShares => "InvalidShare",
                SealError::Token(_) => "Unavailable.Token",
                _ => "Rejected.Seal",
            },
            Self::Start(StartError::Held { .. }) => "Unavailable.Held",
            Self::Start(_) | Self::AllAgain(_) => "Unavailable.Start",
            Self::Engine(error) => error.code(),
            Self::Busy => "Rejected.Throttling",
        }
    }

    /// The kind of refusal.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Share(_) | Self::Splitting => ErrorKind::Invalid,
            Self::Seal(error)
            | Self::Start(StartError::Seal(error))
            | Self::AllAgain(StartError::Seal(error)) => match error {
                SealError::NeedsShares => ErrorKind::Invalid,
                SealError::Token(_) => ErrorKind::Unavailable,
                _ => ErrorKind::Conflict,
            },
            Self::Start(_) | Self::AllAgain(_) => ErrorKind::Unavailable,
            Self::Engine(error) => error.kind(),
            Self::Busy => ErrorKind::Busy,
            _ => ErrorKind::Conflict,
        }
    }
}
