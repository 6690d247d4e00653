//! Overrides that somebody else has to confirm: asked for, confirmed, rejected.
//!
//! 1. Who overrides while the setting is on gets no change but a request, which is durable before
//!    the refusal that names it ([`ask`]).
//! 2. Another person confirms it ([`ConfirmOverride`]): what was asked for is looked at anew, and
//!    done together with the end of the request.
//! 3. A request ends after a day, or when anybody rejects it.

use super::{
    Command, Done, Scope, cluster_end,
    dependants::remove,
    guard::{self, MAX_REASON},
    retire,
};
use crate::{
    Error, Timestamp,
    action::Action,
    audit::Record,
    barrier::{Expect, Stored, to_json},
    dependants::Label,
    engine::Core,
    policy::Resource,
    records::Change,
    second_person::{
        MAX_REQUESTS, OverrideRequest, PATIENCE, Proposed, REQUESTS, SETTING, SecondPerson, person,
    },
};

/// Whether an override needs a second person, and what waits for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardState {
    /// The setting.
    pub second_person: SecondPerson,
    /// What waits, oldest first.
    pub requests: Vec<OverrideRequest>,
}

async fn setting(core: &Core) -> Result<Option<Stored<SecondPerson>>, Error> {
    core.records.barrier.read_json(SETTING).await
}

/// Whether an override needs a second person.
pub(super) async fn is_needed(core: &Core) -> Result<bool, Error> {
    Ok(setting(core).await?.is_some_and(|setting| setting.value.on))
}

async fn stored(core: &Core) -> Result<Vec<Stored<OverrideRequest>>, Error> {
    let page = core.records.barrier.store().list(REQUESTS, None, 2 * MAX_REQUESTS).await?;
    page.iter().map(|entry| core.records.barrier.open_json(entry)).collect()
}

fn path(id: &Label) -> String {
    format!("{REQUESTS}{id}")
}

/// Asks for a second person: a request that is durable before it is told. The same request of the
/// same person stays the one it was.
pub(super) async fn ask<T>(
    core: &Core,
    scope: &mut Scope<'_>,
    (proposed, reason): (Proposed, &str),
) -> Result<Done<T>, Error> {
    let person = person(&scope.caller.principal).ok_or(Error::Denied)?;
    let now = core.clock.now();
    if scope.caller.dry_run {
        // There is no request to be confirmed.
        let (id, until) = ("ID".to_owned(), now.after(PATIENCE));
        return Err(Error::AwaitsSecondPerson { id, by: person, until });
    }
    let (known, mut change) = (stored(core).await?, Change::new());
    let (live, over): (Vec<_>, Vec<_>) = known.iter().partition(|known| known.value.until > now);
    let same = live.iter().find(|one| one.value.proposed == proposed && one.value.person == person);
    if same.is_none() && live.len() >= MAX_REQUESTS {
        return Err(Error::LimitExceeded { what: "requests", limit: MAX_REQUESTS });
    }
    for over in over.iter().take(20) {
        change = change.delete_raw(path(&over.value.id), over.expect());
    }
    let id = match same {
        Some(same) => same.value.id.clone(),
        None => Label::parse(&core.new_uuid(now).to_string())?,
    };
    let (by, until) = (scope.caller.principal.to_string(), now.after(PATIENCE));
    let request = OverrideRequest {
        id: id.clone(),
        proposed,
        reason: reason.to_owned(),
        person: person.clone(),
        by,
        at: now,
        until,
    };
    scope.record.field("override", reason);
    scope.record.field("request", &id);
    let expect = same.map_or(Expect::Absent, |same| same.expect());
    let change = change.put(path(&id), to_json(&request)?, expect);
    Ok(Done::refuse(Error::AwaitsSecondPerson { id: id.to_string(), by: person, until }, change))
}

/// Answers with the setting, and with what waits for a second person.
#[derive(Clone, Copy, Debug)]
pub struct DescribeGuard;

impl Command for DescribeGuard {
    const ACTION: Action = Action::DescribeGuard;
    type Output = GuardState;

    fn resource(&self, _: &Core, _: &mut Record) -> Resource {
        Resource::Service
    }

    async fn act(&self, core: &Core, _: &mut Scope<'_>) -> Result<Done<GuardState>, Error> {
        let now = core.clock.now();
        let second_person = setting(core).await?.map(|stored| stored.value).unwrap_or_default();
        let requests = stored(core).await?.into_iter().map(|stored| stored.value);
        let requests = requests.filter(|request| request.until > now).collect();
        Ok(Done::read(GuardState { second_person, requests }))
    }
}

/// Has overrides need a second person, or no longer. To end it needs one itself.
#[derive(Clone, Debug)]
pub struct SetSecondPerson {
    /// Whether they do.
    pub on: bool,
    /// Why, for the audit log.
    pub reason: String,
}

impl Command for SetSecondPerson {
    const ACTION: Action = Action::SetSecondPerson;
    type Output = ();

    fn resource(&self, _: &Core, record: &mut Record) -> Resource {
        record.field("second_person", if self.on { "on" } else { "off" });
        Resource::Service
    }

    fn validate(&self) -> Result<(), Error> {
        check_reason(&self.reason)
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<()>, Error> {
        scope.record.field("reason", &self.reason);
        if is_needed(core).await? == self.on {
            return Ok(Done::read(()));
        }
        if !self.on {
            return ask(core, scope, (Proposed::SecondPersonOff, &self.reason)).await;
        }
        Ok(Done::write((), set(core, scope, Change::new(), true).await?))
    }
}

async fn set(core: &Core, scope: &Scope<'_>, change: Change, on: bool) -> Result<Change, Error> {
    let expect = setting(core).await?.map_or(Expect::Absent, |old| old.expect());
    let by = scope.caller.principal.to_string();
    let new = SecondPerson { on, since: Some(core.clock.now()), by };
    Ok(change.put(SETTING.to_owned(), to_json(&new)?, expect))
}

fn check_reason(reason: &str) -> Result<(), Error> {
    if reason.trim().is_empty() || reason.len() > MAX_REASON {
        return Err(Error::invalid("reason", "say why, in at most 1024 bytes"));
    }
    Ok(())
}

/// What was confirmed, and is done now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confirmed {
    /// The request.
    pub request: OverrideRequest,
}

/// Confirms, as another person, what somebody has asked for; it is done with that.
#[derive(Clone, Debug)]
pub struct ConfirmOverride {
    /// The request's id.
    pub id: Label,
}

async fn find(core: &Core, id: &Label) -> Result<Stored<OverrideRequest>, Error> {
    core.records.barrier.read_json(&path(id)).await?.ok_or(Error::NotFound("request"))
}

impl Command for ConfirmOverride {
    const ACTION: Action = Action::ConfirmOverride;
    type Output = Confirmed;

    fn resource(&self, _: &Core, record: &mut Record) -> Resource {
        record.field("request", &self.id);
        Resource::Service
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<Confirmed>, Error> {
        let found = find(core, &self.id).await?;
        let request = &found.value;
        let now: Timestamp = core.clock.now();
        if request.until <= now {
            return Err(Error::NotFound("request, or not any more; it"));
        }
        scope.record.field("override", &request.reason);
        scope.record.field("requested_by", &request.by);
        let confirms = person(&scope.caller.principal).ok_or(Error::Denied)?;
        if confirms == request.person {
            return Err(Error::SamePerson { by: confirms });
        }
        let change = perform(core, scope, &request.proposed).await?;
        let change = change.delete_raw(path(&self.id), found.expect());
        Ok(Done::write(Confirmed { request: found.value }, change))
    }
}

/// What has to be written for it to be done, as things are now.
async fn perform(core: &Core, scope: &mut Scope<'_>, proposed: &Proposed) -> Result<Change, Error> {
    match proposed {
        Proposed::DisableKey { key } => {
            scope.record.field("proposed", "DisableKey");
            let old = core.records.key(*key).await?;
            guard::note_forced(core, scope, &old.value).await?;
            guard::disable(&old)
        }
        Proposed::ScheduleKeyDeletion { key, window_days } => {
            scope.record.field("proposed", "ScheduleKeyDeletion");
            let old = core.records.key(*key).await?;
            let forced = guard::note_forced(core, scope, &old.value).await?;
            guard::schedule_deletion(core, &old, (*window_days, forced))
        }
        Proposed::RetireKeyVersion { key, version, window_days } => {
            scope.record.field("proposed", "RetireKeyVersion");
            let old = core.records.key(*key).await?;
            scope.used(*key, Some(*version));
            retire::retire_now(core, scope, (&old, *version), *window_days).await
        }
        Proposed::RemoveDependant { key, kind, id } => {
            scope.record.field("proposed", "RemoveDependant");
            scope.used(*key, None);
            scope.record.field("dependant", format_args!("{kind}/{id}"));
            remove(core, scope, (*key, kind, id))
        }
        Proposed::ForgetCluster { cluster } => {
            scope.record.field("proposed", "ForgetCluster");
            scope.record.field("cluster", cluster);
            let known = core.records.cluster(*cluster).ok_or(Error::NotFound("cluster"))?;
            cluster_end::forget(core, &known).await
        }
        Proposed::SecondPersonOff => {
            scope.record.field("proposed", "SetSecondPerson");
            set(core, scope, Change::new(), false).await
        }
    }
}

/// Drops what somebody has asked for.
#[derive(Clone, Debug)]
pub struct RejectOverride {
    /// The request's id.
    pub id: Label,
}

impl Command for RejectOverride {
    const ACTION: Action = Action::RejectOverride;
    type Output = ();

    fn resource(&self, _: &Core, record: &mut Record) -> Resource {
        record.field("request", &self.id);
        Resource::Service
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<()>, Error> {
        let found = find(core, &self.id).await?;
        scope.record.field("requested_by", &found.value.by);
        Ok(Done::write((), Change::new().delete_raw(path(&self.id), found.expect())))
    }
}
