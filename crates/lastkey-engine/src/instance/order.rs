//! Orders that change the seal of a running server.
//!
//! A share is given for one order alone: who names another one than what the shares before were
//! given for is refused, and the share is not taken.

use std::sync::Arc;

use lastkey_crypto::{
    KeyMaterial,
    share::{SetId, Share, Splitting},
};

use super::{
    Instance, InstanceStatus, NewShares, OperatorError, Work,
    doubt::{Doubt, settled},
    share_out,
};
use crate::{
    Caller, Engine, Parts, Seal,
    command::seal::{
        CancelSeal, ConfirmSeal, ManageSeal, MigrateSeal, RekeySeal, RotateRootKey, SealChange,
        Wanted,
    },
    seal::{
        Gathering, Kept, ROOT_KEY_BYTES, RootPrint, SealEntry, SealKind, SealRecord, ShamirEntry,
        ShareRefused, gathering::Given,
    },
};

/// What an operator wants to be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// New shares in place of the old ones.
    Rekey {
        /// How many, and how many of them it takes. Who enters a share for what another has
        /// begun may leave it out.
        splitting: Option<(u8, u8)>,
    },
    /// The new shares are with their keepers: enough of them are entered to prove it.
    Confirm,
    /// Forget what is under way: shares that are being entered, if there are any; else new ones
    /// that wait, which are worthless then.
    Cancel,
    /// Another seal.
    Migrate {
        /// Of this kind.
        to: SealKind,
        /// For shares: how many, and how many it takes.
        splitting: Option<(u8, u8)>,
    },
    /// A new root key under the same seal.
    RotateRoot,
}

/// A change of the seal that shares are entered for.
pub(super) struct Begun {
    pub(super) order: Order,
    pub(super) gathering: Gathering,
    /// The token to migrate to: the one that was named for it, or that the process used then.
    token: Option<Arc<dyn Seal>>,
}

/// What comes with an order.
#[derive(Default)]
pub struct With {
    /// One more share.
    pub share: Option<Share>,
    /// The token to migrate to, where it is not the one that this process uses. Where shares are
    /// entered one call after the other, the first call fixes it, whether it names one or not, and
    /// a call that names another one is refused. It is used from then on, if the order was carried
    /// out.
    pub token: Option<Arc<dyn Seal>>,
}

/// What came of an order.
#[derive(Debug)]
pub enum Outcome {
    /// Done, or more shares are needed: the status tells.
    Status(Box<InstanceStatus>),
    /// These shares were made, and wait to be entered once.
    Shares(NewShares),
}

impl Order {
    /// As commands and audit records name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rekey { .. } => "rekey",
            Self::Confirm => "confirm",
            Self::Cancel => "cancel",
            Self::Migrate { .. } => "migrate",
            Self::RotateRoot => "rotate root",
        }
    }

    /// What it leads to, as far as it says so: a seal, or how many shares.
    fn target(self) -> Option<String> {
        match self {
            Self::Rekey { splitting } => splitting.map(shares_of),
            Self::Migrate { to, splitting } => Some(match splitting.map(shares_of) {
                Some(shares) => format!("{to} ({shares})"),
                None => to.to_string(),
            }),
            Self::Confirm | Self::Cancel | Self::RotateRoot => None,
        }
    }

    /// Whether a share that is given for this order may be used for the other one.
    fn joins(self, other: Self) -> bool {
        match (self, other) {
            (Self::Rekey { splitting: None }, Self::Rekey { .. }) => true,
            (Self::Migrate { to, splitting: None }, Self::Migrate { to: begun, .. }) => to == begun,
            _ => self == other,
        }
    }

    /// Whether it needs a token.
    fn is_to_token(self) -> bool {
        matches!(self, Self::Migrate { to: SealKind::Pkcs11, .. })
    }

    /// What it wants, for the audit record of who gave a share for it.
    fn wanted(self, token: Option<&dyn Seal>) -> Wanted {
        let (seal, splitting) = match self {
            Self::Rekey { splitting } => (None, splitting),
            Self::Migrate { to, splitting } => (Some(to), splitting),
            Self::Confirm | Self::Cancel | Self::RotateRoot => (None, None),
        };
        Wanted { seal, splitting, token: token.and_then(Seal::place) }
    }

    /// The sets whose shares this order takes; none if the caller's word is enough.
    pub(super) fn takes(self, record: Option<&SealRecord>) -> Vec<ShamirEntry> {
        let Some(record) = record else { return Vec::new() };
        let shared = record.kind() == SealKind::Shamir;
        match self {
            Self::Confirm => match record.pending() {
                Some(SealEntry::Shamir(entry)) => vec![entry.clone()],
                _ => Vec::new(),
            },
            Self::Rekey { .. } | Self::Migrate { .. } | Self::RotateRoot if shared => {
                record.shamir().cloned().collect()
            }
            _ => Vec::new(),
        }
    }

    /// Whether it makes sense with this seal.
    fn check(self, record: &SealRecord) -> Result<(), OperatorError> {
        let pending = record.pending().is_some();
        match self {
            Self::Rekey { splitting } => {
                check_splitting(splitting)?;
                match record.kind() {
                    SealKind::Shamir => Ok(()),
                    other => Err(OperatorError::TakesNoShares(other)),
                }
            }
            Self::Confirm if !pending => Err(OperatorError::NothingPending),
            Self::Confirm | Self::Cancel => Ok(()),
            Self::Migrate { .. } | Self::RotateRoot if pending => Err(OperatorError::Pending),
            Self::Migrate { to, splitting } => {
                if to == record.kind() && to != SealKind::Pkcs11 {
                    return Err(OperatorError::SameSeal(to));
                }
                if to == SealKind::Shamir { check_splitting(splitting) } else { Ok(()) }
            }
            Self::RotateRoot => Ok(()),
        }
    }
}

fn shares_of((shares, threshold): (u8, u8)) -> String {
    format!("{threshold} of {shares} shares")
}

fn check_splitting(splitting: Option<(u8, u8)>) -> Result<(), OperatorError> {
    let sound = splitting.is_some_and(|(shares, threshold)| {
        (lastkey_crypto::share::MIN_THRESHOLD..=shares).contains(&threshold)
    });
    if sound { Ok(()) } else { Err(OperatorError::Splitting) }
}

/// What an order comes to: the change, and what has to be done with it once it is durable.
struct Plan {
    change: SealChange,
    shares: Option<NewShares>,
    /// The token to use from then on.
    token: Option<Arc<dyn Seal>>,
}

impl Plan {
    fn new(change: SealChange) -> Self {
        Self { change, shares: None, token: None }
    }
}

/// Whether there are enough shares for an order.
enum Gathered {
    /// There are, or none are needed.
    Enough(Means),
    /// More are needed, or this one was refused.
    Not(Result<(), ShareRefused>),
}

/// What an order is carried out with.
struct Means {
    given: Option<Given>,
    token: Option<Arc<dyn Seal>>,
}

impl Begun {
    /// What it leads to, as far as that was said.
    pub(super) fn target(&self) -> Option<String> {
        let target = self.order.target()?;
        Some(match self.token.as_deref().and_then(Seal::place) {
            Some(place) => format!("{target}, {place}"),
            None => target,
        })
    }

    /// Whether a share that comes with this order may be used for what was begun.
    fn is_joined_by(&self, order: Order, token: Option<&dyn Seal>) -> bool {
        let first = self.token.as_deref().and_then(Seal::place);
        let other_token = token.is_some_and(|token| token.place() != first);
        order.joins(self.order) && !other_token
    }

    fn described(&self) -> String {
        let name = self.order.name();
        self.target().map_or_else(|| name.to_owned(), |target| format!("{name} to {target}"))
    }
}

impl Work {
    /// Takes one more share for an order.
    fn gather(
        &mut self,
        order: Order,
        With { share, token }: With,
        (sets, print): (&[ShamirEntry], Option<RootPrint>),
    ) -> Gathered {
        if sets.is_empty() {
            self.order = None;
            return Gathered::Enough(Means { given: None, token });
        }
        let begin = || Begun { order, gathering: Gathering::default(), token };
        let begun = self.order.get_or_insert_with(begin);
        let entered = match share {
            Some(share) => begun.gathering.enter(share, (sets, print)),
            None => Ok(None),
        };
        match entered {
            Ok(Some(given)) => {
                let token = self.order.take().and_then(|begun| begun.token);
                Gathered::Enough(Means { given: Some(given), token })
            }
            Ok(None) => Gathered::Not(Ok(())),
            Err(refused) => Gathered::Not(Err(refused)),
        }
    }
}

impl Instance {
    /// Carries out an order, or takes one more share for it. Each call is authorised and audited.
    ///
    /// # Errors
    /// [`OperatorError`]; the seal is what it was.
    pub async fn order(
        &self,
        caller: &Caller,
        order: Order,
        mut with: With,
    ) -> Result<Outcome, OperatorError> {
        let parts = self.parts()?;
        let engine = self.engine()?;
        // Who begins without naming a token means the one that is used now, and is recorded and
        // compared as if they had named it.
        with.token = match with.token {
            _ if !order.is_to_token() => None,
            None if self.status().order.is_none() => parts.seal.token(),
            named => named,
        };
        let index = with.share.as_ref().map(|share| share.head().index);
        let wanted = order.wanted(with.token.as_deref());
        engine.execute(caller, ManageSeal { order: order.name(), wanted, share: index }).await?;
        let mut work = self.work().await;
        self.forget_abandoned(&mut work).await;
        if order == Order::Cancel && work.order.take().is_some() {
            // What keepers hold by then is not dropped by the way.
            self.show(&work).await?;
            return Ok(Outcome::Status(Box::new(self.status())));
        }
        let mut kept = Kept::load(&*parts.store).await?;
        settled(&mut work, &kept, (&engine, parts)).await?;
        // Stores of releases before 0.2 do not name the one that their file holds.
        kept.record.root.get_or_insert_with(|| RootPrint::of(&engine.root_key()));
        // What the first caller asked for is what the others give their shares for.
        let order = match &work.order {
            Some(begun) if order != Order::Cancel => {
                if !begun.is_joined_by(order, with.token.as_deref()) {
                    return Err(OperatorError::OtherOrder(begun.described()));
                }
                begun.order
            }
            _ => order,
        };
        order.check(&kept.record)?;
        let sets = order.takes(Some(&kept.record));
        let begun = work.order.is_none();
        if begun && order.is_to_token() {
            let token = with.token.take().or_else(|| parts.seal.token());
            with.token = Some(token.ok_or(OperatorError::NoToken)?);
        }
        let means = match work.gather(order, with, (&sets, kept.record.root)) {
            Gathered::Enough(means) => means,
            Gathered::Not(entered) => {
                if begun || entered.is_ok() {
                    self.progressed(&mut work);
                }
                self.show(&work).await?;
                entered?;
                return Ok(Outcome::Status(Box::new(self.status())));
            }
        };
        let plan = plan(order, means, &kept, (parts, &engine)).await;
        let outcome = match plan {
            Ok(Some(plan)) => self.carry_out((order, plan), &mut work, (caller, &engine)).await,
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        drop(engine);
        let shown = self.show(&work).await;
        match outcome? {
            // They are told once, whether the status can be told or not.
            Some(shares) => Ok(Outcome::Shares(shares)),
            None => {
                shown?;
                Ok(Outcome::Status(Box::new(self.status())))
            }
        }
    }

    /// Commits the change with its record, and goes on with what it brought.
    async fn carry_out(
        &self,
        (order, plan): (Order, Plan),
        work: &mut Work,
        (caller, engine): (&Caller, &Engine),
    ) -> Result<Option<NewShares>, OperatorError> {
        let Plan { change, shares, token } = plan;
        let parts = self.parts()?;
        let (next, root) = (change.next.clone(), change.root.clone());
        let committed = match order {
            Order::Rekey { .. } => engine.execute(caller, RekeySeal(change)).await,
            Order::Confirm => engine.execute(caller, ConfirmSeal(change)).await,
            Order::Cancel => engine.execute(caller, CancelSeal(change)).await,
            Order::Migrate { .. } => engine.execute(caller, MigrateSeal(change)).await,
            Order::RotateRoot => engine.execute(caller, RotateRootKey(change)).await,
        };
        if let Err(error) = committed {
            // It may have been made all the same: what the store says counts.
            let Ok(kept) = Kept::load(&*parts.store).await else {
                self.doubt(work, Doubt { next, root, token });
                return Err(error.into());
            };
            if kept.record != next {
                return Err(error.into());
            }
            tracing::warn!(%error, "the change of the seal was made, but its record is late");
        }
        if let Some(token) = token {
            parts.seal.use_token(token);
        }
        engine.sealed_anew(&next, root, parts).await;
        Ok(shares)
    }

    /// Enough of the new shares unsealed the server: they are all it takes from here on.
    pub(super) async fn confirm_after_unseal(
        &self,
        work: &mut Work,
        kept: &Kept,
        given: (&ShamirEntry, &KeyMaterial),
    ) {
        let confirmed = async {
            let (parts, engine) = (self.parts()?, self.engine()?);
            let plan = confirm(given, kept, parts);
            let caller = engine.system_caller();
            self.carry_out((Order::Confirm, plan), work, (&caller, &engine)).await
        };
        if let Err(error) = confirmed.await {
            tracing::error!(%error, "the old seal still works; run `lastkey operator confirm`");
        }
    }
}

/// What to write. `None` if there is nothing.
async fn plan(
    order: Order,
    Means { given, token }: Means,
    kept: &Kept,
    (parts, engine): (&Parts, &Engine),
) -> Result<Option<Plan>, OperatorError> {
    let record = &kept.record;
    let Some(main) = record.seal() else { return Ok(None) };
    let entropy = &*parts.entropy;
    let same_root = |seals: Vec<SealEntry>| {
        let print = RootPrint::of(&engine.root_key());
        SealChange { next: record.next(print, seals), expect: kept.revision, root: None }
    };
    Ok(Some(match (order, given) {
        (Order::Cancel, _) => match record.pending() {
            None => return Ok(None),
            Some(_) => Plan::new(same_root(vec![main.clone()])),
        },
        (Order::Rekey { splitting: Some((shares, threshold)) }, Some(_)) => {
            let splitting = next_set(record, (shares, threshold), entropy);
            let (made, entry) = share_out(splitting, &engine.root_key(), parts)?;
            let seal = super::SealSummary::of(&entry);
            let change = same_root(vec![main.clone(), entry]);
            Plan { shares: Some(NewShares { shares: made, seal }), ..Plan::new(change) }
        }
        (Order::Migrate { to: SealKind::Shamir, splitting: Some((shares, threshold)) }, _) => {
            let splitting = next_set(record, (shares, threshold), entropy);
            let (made, entry) = share_out(splitting, &engine.root_key(), parts)?;
            let seal = super::SealSummary::of(&entry);
            let change = same_root(vec![main.clone(), entry]);
            Plan { shares: Some(NewShares { shares: made, seal }), ..Plan::new(change) }
        }
        (Order::Migrate { to: SealKind::Pkcs11, .. }, _) => {
            let seal = token.as_deref().ok_or(OperatorError::NoToken)?;
            let change = under_new_root((SealKind::Pkcs11, seal), kept, parts).await?;
            Plan { token, ..Plan::new(change) }
        }
        (Order::Migrate { to, .. }, _) => {
            Plan::new(under_new_root((to, &*parts.seal), kept, parts).await?)
        }
        (Order::RotateRoot | Order::Confirm, Some(given)) => {
            confirm((&given.entry, &given.unseal_key), kept, parts)
        }
        (Order::RotateRoot, None) => {
            Plan::new(under_new_root((record.kind(), &*parts.seal), kept, parts).await?)
        }
        (Order::Rekey { .. } | Order::Confirm, _) => return Ok(None),
    }))
}

/// A new root key under a seal that opens by itself; tried before anything depends on it.
async fn under_new_root(
    (kind, seal): (SealKind, &dyn Seal),
    kept: &Kept,
    parts: &Parts,
) -> Result<SealChange, OperatorError> {
    let root = KeyMaterial::generate(ROOT_KEY_BYTES, &*parts.entropy);
    let print = RootPrint::of(&root);
    let entry = seal.wrap(kind, (&root, &kept.record), &*parts.entropy).await?;
    let again = seal.unwrap(&entry, Some(print)).await?;
    if !again.equals(&root) {
        return Err(crate::SealError::WrongRoot(kind).into());
    }
    let next = kept.record.next(print, vec![entry]);
    Ok(SealChange { next, expect: kept.revision, root: Some(Arc::new(root)) })
}

/// A new root key under the key that these shares gave, and under nothing else.
fn confirm((entry, unseal_key): (&ShamirEntry, &KeyMaterial), kept: &Kept, parts: &Parts) -> Plan {
    let root = KeyMaterial::generate(ROOT_KEY_BYTES, &*parts.entropy);
    let entry = entry.rewrap(unseal_key, &root, &*parts.entropy);
    let next = kept.record.next(RootPrint::of(&root), vec![SealEntry::Shamir(entry)]);
    Plan::new(SealChange { next, expect: kept.revision, root: Some(Arc::new(root)) })
}

/// The next generation of the set, or a set of its own.
fn next_set(
    record: &SealRecord,
    (shares, threshold): (u8, u8),
    entropy: &dyn lastkey_crypto::Entropy,
) -> Splitting {
    let made = |e: &ShamirEntry| Some((SetId::parse(&e.set)?, record.latest_of(&e.set)));
    let latest = record.shamir().filter_map(made).max_by_key(|(_, generation)| *generation);
    let (set, generation) = match latest {
        Some((set, generation)) if generation < u16::MAX => (set, generation + 1),
        _ => (SetId::random(entropy), 1),
    };
    Splitting { set, generation, shares, threshold }
}
