//! A change of provider: what comes before the objects are written anew, and what after it.
//!
//! Each step is stored before it is taken, with the file's hash before and after it, so that who
//! goes on after a crash knows whether it was taken. A file that has neither hash was changed by
//! somebody else: then nothing more is written ([`RotateError::Changed`]).

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use lastkey_client::native::{RotationPhase, Way};
use lastkey_crypto::{Entropy as _, SystemEntropy};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use super::{
    ASK_EVERY, Claim, Event, RENEW_EVERY, RotateError, Stop, Worker,
    loads::{Loads, RELOADS_WITHIN},
    new_keys::holds_keys,
    shown::{Shown, concerned, prefixes},
};
use crate::{
    cluster::ServerUrl,
    encryption_config::{
        Edited, EncryptionConfiguration, Kms, Provider, ProviderKind, Rule, apply, examine,
        readable,
    },
    node::ask_status,
    socket::SocketAddress,
    transition::{
        Goal, Hands, PlaceError, Stage, Target, bare, hash,
        loaded::{self, Age, Seen},
        next,
    },
};

/// A file that somebody is just copying looks odd for a moment; this many looks in a row it may.
const ODD_LOOKS: u32 = 5;
/// Of so many looks at an apiserver one asks it to show what it writes under.
const SHOWN_EVERY: u32 = 15;

/// What is kept of a change, beside what is kept of a rotation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Change {
    /// The hash of the file as the last step has left it; empty before the first.
    pub(super) base: String,
    /// The step that is being taken.
    step: Option<Step>,
    /// What was taken out of the configuration.
    pub(super) removed: Vec<String>,
    /// What could not be, because something is still under it.
    pub(super) left: Vec<String>,
    /// Where the predecessors of the file are.
    pub(super) kept: Vec<PathBuf>,
    /// Whether comments of the file were lost.
    pub(super) comments_lost: bool,
    /// How often objects were written anew because something was left.
    pub(super) rounds: u32,
}

/// One change of the file, on its way to every apiserver.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Step {
    stage: Stage,
    /// The file's hash; empty if there was none.
    before: String,
    after: String,
    /// Where its predecessor is kept, if it is replaced here.
    #[serde(default)]
    kept: Option<PathBuf>,
    /// What the apiservers said before the file was replaced.
    seen: Vec<Seen>,
    /// What the file calls the KMS that it is about: an apiserver that works by it asks these plugins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    asks: Vec<String>,
}

/// What becomes of the configuration, for whoever watches.
#[derive(Clone, PartialEq)]
pub struct ConfigEvent {
    /// How far it is then.
    pub stage: Stage,
    /// Where it lies.
    pub path: PathBuf,
    /// As the apiservers' metrics name it.
    pub hash: String,
    /// Where its predecessor is, if it was replaced here.
    pub kept: Option<PathBuf>,
    /// Why it has to be put in place by somebody else, and its content, which may hold keys.
    pub by_hand: Option<(String, Zeroizing<String>)>,
    /// Whether that content holds keys.
    pub holds_keys: bool,
    /// Whether comments were lost.
    pub comments_lost: bool,
}

impl std::fmt::Debug for ConfigEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConfigEvent").field("stage", &self.stage).finish_non_exhaustive()
    }
}

/// What a file calls the providers that are `target`, where that is a KMS: whatever the name is that a
/// new one would get.
fn asked(text: &str, target: &Target) -> Vec<String> {
    let Ok(config) = readable(Some(text)) else { return Vec::new() };
    let providers = config.rules.iter().flat_map(|rule| &rule.providers);
    let names = providers.filter(|one| target.is(one)).filter_map(|one| match one.kind() {
        Some(ProviderKind::Kms(kms)) => Some(kms.name.clone()),
        _ => None,
    });
    names.collect::<BTreeSet<String>>().into_iter().collect()
}

impl Worker {
    /// What is wanted, and the means; an error where this is a mere rotation.
    pub(super) fn goal(&self, claim: &Claim) -> Result<(Goal, Way, &Hands), RotateError> {
        let course = claim.rotation.course.as_ref().ok_or(RotateError::State)?;
        let goal = serde_json::from_value(course.goal.clone()).map_err(|_| RotateError::State)?;
        Ok((goal, course.way, self.change.as_ref().ok_or(RotateError::NoHands)?))
    }

    /// The new provider is made readable everywhere.
    pub(super) async fn prepare(&self, claim: &mut Claim) -> Result<(), Stop> {
        let (goal, way, hands) = self.goal(claim)?;
        if let (Target::Kms { endpoint, .. }, Way::Enable) = (&goal.target, way) {
            check_plugin(endpoint, &claim.rotation.plugin_key_id).await?;
        }
        if hands.accept && !claim.state.change.accepted(hands)? {
            claim.state.change.base.clear();
            claim.state.change.step = None;
        }
        self.step(claim, Stage::Readable).await?;
        match (way, &goal.target) {
            (Way::Enable, _) => self.until_none_behind(claim, true).await?,
            (Way::Disable, Target::Kms { .. }) => self.until_none_behind(claim, false).await?,
            (Way::Disable, _) => {}
        }
        self.save(claim, Some(RotationPhase::Switching), false).await
    }

    /// The new provider is made the one that writes.
    pub(super) async fn switch(&self, claim: &mut Claim) -> Result<(), Stop> {
        let (_, way, _) = self.goal(claim)?;
        self.step(claim, Stage::Writing).await?;
        let next = match way {
            Way::Enable => RotationPhase::Converging,
            Way::Disable => {
                // What came since it was begun may have been written by the old provider.
                self.look_again(claim).await?;
                claim.state.begin_pass();
                RotationPhase::Rewriting
            }
        };
        self.save(claim, Some(next), false).await
    }

    /// Waits until every apiserver can work with its KMS providers, and with our key if `ours`.
    async fn until_none_behind(&self, claim: &mut Claim, ours: bool) -> Result<(), Stop> {
        let (began, mut told) = (Instant::now(), Vec::new());
        loop {
            let late = began.elapsed() >= RELOADS_WITHIN;
            let behind = match ours {
                true => self.not_told(claim, late).await,
                false => self.unhealthy().await,
            };
            if behind.is_empty() {
                return Ok(());
            }
            self.wait(claim, &mut told, behind).await?;
        }
    }

    async fn unhealthy(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (server, url) in self.api.urls().enumerate() {
            match self.api.readyz(server).await {
                Err(error) => found.push(format!("{url} cannot be asked: {error}")),
                Ok(Err(failed)) if failed.iter().any(|name| name.starts_with("kms-provider")) => {
                    found.push(format!("{url} cannot work with its KMS provider"));
                }
                Ok(_) => {}
            }
        }
        found
    }

    /// One pause of waiting; keeps the claim, and says what is waited for if that is news.
    async fn wait(
        &self,
        claim: &mut Claim,
        told: &mut Vec<String>,
        behind: Vec<String>,
    ) -> Result<(), Stop> {
        if behind != *told {
            (self.watch)(&Event::Behind(behind.clone()));
            *told = behind;
        }
        if claim.saved.elapsed() >= RENEW_EVERY {
            self.save(claim, None, false).await?;
        }
        self.go_on()?;
        tokio::time::sleep(ASK_EVERY).await;
        Ok(())
    }

    /// Brings the configuration to `stage`, at every apiserver.
    pub(super) async fn step(&self, claim: &mut Claim, stage: Stage) -> Result<(), Stop> {
        // Before the file is looked at: an apiserver may be away for long.
        let seen = self.seen(claim).await?;
        let (_, _, hands) = self.goal(claim)?;
        let current = hands.current()?;
        let now = current.as_deref().map(|text| hash(text)).unwrap_or_default();
        let pending = claim.state.change.step.clone().filter(|step| step.stage == stage);
        let known = match &pending {
            Some(step) => now == step.before || now == step.after,
            None => claim.state.change.base.is_empty() || now == claim.state.change.base,
        };
        if !known {
            if hands.accept {
                // From the beginning, with what is there now.
                claim.state.change =
                    Change { kept: claim.state.change.kept.clone(), ..Change::default() };
                self.save(claim, Some(RotationPhase::Preparing), false).await?;
                return Err(Stop::Again);
            }
            return Err(RotateError::Changed { path: hands.place.path.clone() }.into());
        }
        let (step, edited) = match pending {
            Some(mut step) if now == step.after => {
                if step.asks.is_empty() {
                    // An earlier release has put it in place.
                    let text = current.as_ref().map_or("", |text| text.as_str());
                    step.asks = asked(text, &self.goal(claim)?.0.target);
                }
                (step, None)
            }
            _ => {
                let edited =
                    self.edited(claim, stage, current.as_ref().map(|text| text.as_str())).await?;
                let (before, after) = (now, hash(&edited.text));
                let changed = before != after;
                let kept = pending.filter(|step| step.before == before).and_then(|step| step.kept);
                let kept = if changed { self.to_be_kept(claim, kept)? } else { None };
                let asks = asked(&edited.text, &self.goal(claim)?.0.target);
                let step = Step { stage, before, after, kept, seen, asks };
                (step, Some(edited).filter(|_| changed))
            }
        };
        // Before the file is replaced: who goes on after a crash knows where its predecessor is.
        let kept = &mut claim.state.change.kept;
        kept.extend(step.kept.clone().filter(|path| !kept.contains(path)));
        claim.state.change.step = Some(step.clone());
        self.save(claim, None, false).await?;
        let by_hand = match edited {
            Some(edited) => {
                // What nothing is under takes a while to find out.
                let now = self.goal(claim)?.2.current()?;
                if now.as_deref().map(|text| hash(text)).unwrap_or_default() != step.before {
                    let path = self.goal(claim)?.2.place.path.clone();
                    return Err(RotateError::Changed { path }.into());
                }
                self.put_in_place(claim, &step, edited)?
            }
            None => None,
        };
        let step = self.until_loaded(claim, step, by_hand).await?;
        claim.state.change.base = step.after;
        claim.state.change.step = None;
        Ok(())
    }

    /// Where the predecessor goes, if the file is replaced here: where one that was killed was about
    /// to put it, else beside it.
    fn to_be_kept(
        &self,
        claim: &Claim,
        before: Option<PathBuf>,
    ) -> Result<Option<PathBuf>, RotateError> {
        let (_, _, hands) = self.goal(claim)?;
        if before.is_some() || hands.by_hand || hands.place.locked().is_some() {
            return Ok(before);
        }
        let named = hands.place.predecessor(&claim.rotation.now);
        let path = hands.place.path.clone();
        named.map_err(|source| PlaceError::Read { path, source }.into())
    }

    /// What every apiserver says, once all answer: a step is never taken past one of them.
    async fn seen(&self, claim: &mut Claim) -> Result<Vec<Seen>, Stop> {
        let mut told = Vec::new();
        loop {
            let (mut seen, mut behind) = (Vec::new(), Vec::new());
            for look in loaded::look(&self.api).await {
                match look {
                    Ok(one) => seen.push(one),
                    Err((url, error)) => behind.push(format!("{url} cannot be asked: {error}")),
                }
            }
            if behind.is_empty() {
                return Ok(seen);
            }
            self.wait(claim, &mut told, behind).await?;
        }
    }

    /// The file after `stage`.
    async fn edited(
        &self,
        claim: &mut Claim,
        stage: Stage,
        current: Option<&str>,
    ) -> Result<Edited, Stop> {
        let (goal, _, hands) = self.goal(claim)?;
        let config = readable(current).map_err(RotateError::from)?;
        let in_use = match stage {
            Stage::Clean => self.in_use(claim, &config).await?,
            Stage::Readable | Stage::Writing => Vec::new(),
        };
        let needed = |rule: &Rule, provider: &Provider| {
            in_use.iter().any(|(line, kept)| *line == rule.line && *kept == provider.line)
        };
        let draft = next(&config, &goal, stage, &needed).map_err(RotateError::from)?;
        hands.may_make_keys(&draft, &goal)?;
        let text = current.unwrap_or_default();
        if current.is_some() && draft.is_same_as(&config) {
            let text = Zeroizing::new(text.to_owned());
            return Ok(Edited { text, comments_lost: false });
        }
        Ok(apply(current, &draft, &fresh_key()).map_err(RotateError::from)?)
    }

    /// Puts the file in place, or has somebody do it; then its content is answered.
    fn put_in_place(
        &self,
        claim: &mut Claim,
        step: &Step,
        edited: Edited,
    ) -> Result<Option<Zeroizing<String>>, Stop> {
        let (_, _, hands) = self.goal(claim)?;
        let mut event = ConfigEvent {
            stage: step.stage,
            path: hands.place.path.clone(),
            hash: step.after.clone(),
            kept: None,
            by_hand: None,
            holds_keys: false,
            comments_lost: edited.comments_lost,
        };
        let why = match hands.by_hand {
            true => Some("it is to be put in place by hand".to_owned()),
            false => hands.place.locked(),
        };
        let why = match why {
            Some(why) => Some(why),
            None => match hands.place.replace(&edited.text, step.kept.as_deref()) {
                Ok(()) => {
                    event.kept = step.kept.clone();
                    None
                }
                Err(error) => Some(error.to_string()),
            },
        };
        if why.is_some() {
            // Somebody else replaces it, and keeps it or not.
            let kept = step.kept.as_deref().filter(|path| !path.exists());
            claim.state.change.kept.retain(|path| Some(path.as_path()) != kept);
        }
        if let Some(why) = &why {
            hands.may_show(&edited.text, why)?;
            event.holds_keys = holds_keys(&edited.text);
        }
        claim.state.change.comments_lost |= edited.comments_lost;
        let content = why.is_some().then(|| edited.text.clone());
        event.by_hand = why.map(|why| (why, edited.text));
        (self.watch)(&Event::Config(event));
        Ok(content)
    }

    /// Waits until every apiserver works by the step's file.
    async fn until_loaded(
        &self,
        claim: &mut Claim,
        mut step: Step,
        by_hand: Option<Zeroizing<String>>,
    ) -> Result<Step, Stop> {
        let (began, mut told, mut odd) = (Instant::now(), Vec::new(), 0);
        for look in 0_u32.. {
            let (_, _, hands) = self.goal(claim)?;
            let mut behind = Vec::new();
            match hands.in_place(&step, by_hand.as_ref().map(|text| text.as_str()))? {
                InPlace::Yes => odd = 0,
                InPlace::As(hash) => step.after = hash,
                InPlace::NotYet => {
                    odd = 0;
                    behind.push(format!("{} is not replaced yet", hands.place.path.display()));
                }
                InPlace::Other => {
                    odd += 1;
                    if odd > ODD_LOOKS {
                        let path = hands.place.path.clone();
                        return Err(RotateError::Changed { path }.into());
                    }
                    behind.push(format!(
                        "{} is neither the old nor the new one",
                        hands.place.path.display()
                    ));
                }
            }
            let (now, waited) = (claim.clone(), began.elapsed());
            let not_loaded = self.not_loaded(&now, &step, (waited, look));
            behind.extend(self.meanwhile(claim, not_loaded).await?);
            if behind.is_empty() {
                hands.remember(by_hand);
                return Ok(step);
            }
            self.wait(claim, &mut told, behind).await?;
        }
        Err(RotateError::Interrupted.into())
    }

    /// Whether it works by a file that was there before it was looked at first; `look` says how often
    /// it was since.
    ///
    /// Where the target is to write already, an apiserver that can show that it does has said more than
    /// any time can: the clocks of two machines, and the files on them, need not be alike.
    async fn works_by(
        &self,
        claim: &Claim,
        (server, seen): (usize, &Seen),
        (step, waited, look): (&Step, Duration, u32),
    ) -> bool {
        let Ok((goal, _, hands)) = self.goal(claim) else { return false };
        let Ok(config) = config_now(hands) else { return false };
        let writes = next(&config, &goal, Stage::Writing, &|_, _| true)
            .is_ok_and(|draft| draft.is_same_as(&config));
        let own = self.api.urls().nth(server).is_some_and(is_this_machine);
        if (own || !writes) && seen.works_by(age(hands, waited), &step.asks) {
            return true;
        }
        if !writes || !look.is_multiple_of(SHOWN_EVERY) {
            return false;
        }
        let (target, mut any) = (prefixes(&config, &goal.target), false);
        for of in concerned(&config, &goal.target, &claim.state.resources) {
            match self.shown_by(server, &of, &target).await {
                Shown::Target => any = true,
                Shown::NoObject => {}
                Shown::Other(_) | Shown::Unclear(_) => return false,
            }
        }
        any
    }

    async fn not_loaded(
        &self,
        claim: &Claim,
        step: &Step,
        (waited, look): (Duration, u32),
    ) -> Vec<String> {
        let (mut behind, mut fails) = (Vec::new(), false);
        let late = waited >= RELOADS_WITHIN;
        let Ok((_, _, hands)) = self.goal(claim) else { return behind };
        let unchanged = step.before == step.after;
        for (index, answer) in loaded::look(&self.api).await.into_iter().enumerate() {
            let seen = match answer {
                Ok(seen) => seen,
                Err((url, error)) => {
                    behind.push(format!("{url} cannot be asked: {error}"));
                    continue;
                }
            };
            // Without a hash there is nothing to be seen: every apiserver has loaded it in the step
            // before, or that has to be shown.
            let still = unchanged && seen.hashes.is_empty();
            if still && !claim.state.change.base.is_empty() {
                continue;
            }
            let before = step.seen.get(index).filter(|before| before.url == seen.url);
            let before = before.cloned().unwrap_or_default();
            if let Some(why) = seen.why_not(&before, &step.after, &step.asks) {
                if still && self.works_by(claim, (index, &seen), (step, waited, look)).await {
                    continue;
                }
                let (url, path) = (self.api.urls().nth(index), &hands.place.path);
                let loads = url.map_or(Loads::Unknown, Loads::of);
                let hint = match seen.fails_since(&before) {
                    // One that tries need not be restarted.
                    true => String::new(),
                    false if seen.silent => loads.if_silent(path),
                    false if still => loads.if_not_shown(path, late),
                    false => loads.if_not_loaded(path, late),
                };
                fails |= seen.fails_since(&before);
                behind.push(format!("{} {why}{hint}", seen.url));
            }
        }
        if fails && let Some(reason) = self.plugin_fails(claim).await {
            behind.push(reason);
        }
        behind
    }

    /// What the plugin of the target says for itself, where it is on this machine and fails.
    async fn plugin_fails(&self, claim: &Claim) -> Option<String> {
        let (goal, _, _) = self.goal(claim).ok()?;
        let Target::Kms { endpoint, .. } = goal.target else { return None };
        let (path, socket) = local_socket(&endpoint)?;
        let error = ask_status(&socket).await.err()?;
        Some(format!("the plugin at {path} says: {error}"))
    }
}

/// The plugin's socket, where it is on this machine, answers with the key id of the key.
async fn check_plugin(endpoint: &str, key_id: &str) -> Result<(), RotateError> {
    let Some((path, socket)) = local_socket(endpoint) else { return Ok(()) };
    let plugin = |reason: String| RotateError::Plugin { socket: path.clone(), reason };
    let began = Instant::now();
    loop {
        let answer = ask_status(&socket).await;
        let reason = match answer {
            Ok(answer) if answer.key_id == key_id => return Ok(()),
            Ok(_) => {
                "it answers with another key id: it acts for another key or cluster".to_owned()
            }
            Err(error) => error.to_string(),
        };
        // It hears of a rotation within a moment.
        if began.elapsed() > std::time::Duration::from_secs(20) {
            return Err(plugin(reason));
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// Since when the file is as it is; it has been watched for `waited`.
#[expect(clippy::disallowed_methods, reason = "compared with what the file system says")]
fn age(hands: &Hands, waited: Duration) -> Age {
    let since = hands.place.unchanged_since();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let lasts = since.and_then(|since| Duration::try_from_secs_f64(now - since).ok());
    Age { since, lasts: lasts.unwrap_or_default().max(waited) }
}

/// Whether an address is one of this machine's.
fn is_this_machine(url: &ServerUrl) -> bool {
    let authority = url.authority();
    let host = authority.rsplit_once(':').map_or(authority.as_str(), |(host, _)| host);
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    url.is_loopback() || address.is_ok_and(|ip| std::net::UdpSocket::bind((ip, 0)).is_ok())
}

/// The socket of an endpoint whose directory is on this machine.
fn local_socket(endpoint: &str) -> Option<(String, SocketAddress)> {
    let kms = Kms { endpoint: endpoint.to_owned(), ..Kms::default() };
    let path = kms.socket().filter(|path| path.starts_with('/'))?;
    if !Path::new(&path).parent().is_some_and(Path::is_dir) {
        return None;
    }
    let socket = path.parse().ok()?;
    Some((path, socket))
}

/// The base64 of 32 random bytes.
fn fresh_key() -> Zeroizing<String> {
    let mut key = [0; 32];
    SystemEntropy.fill(&mut key);
    let text = Zeroizing::new(BASE64_STANDARD.encode(key));
    key.zeroize();
    text
}

/// Whether the file is the one of a step.
enum InPlace {
    Yes,
    /// It says the same in other words, and has this hash.
    As(String),
    NotYet,
    Other,
}

impl Hands {
    /// The configuration as it is now; `None` where there is none yet.
    ///
    /// # Errors
    /// When it is elsewhere and no copy is given, or cannot be read.
    pub fn current(&self) -> Result<Option<Zeroizing<String>>, RotateError> {
        if let Some(text) = self.printed.lock().clone() {
            return Ok(Some(text));
        }
        let own = self.place.read()?.filter(|text| !text.trim().is_empty());
        match (&self.copy, own) {
            (_, Some(text)) => Ok(Some(text)),
            (Some(copy), None) => {
                let place = crate::transition::Place { path: copy.clone() };
                Ok(place.read()?)
            }
            (None, None) if self.place.is_here() => Ok(None),
            (None, None) => Err(RotateError::NotHere { path: self.place.path.clone() }),
        }
    }

    /// Remembers what was printed, where it cannot be read.
    fn remember(&self, by_hand: Option<Zeroizing<String>>) {
        if by_hand.is_some() && !self.is_readable() {
            *self.printed.lock() = by_hand;
        }
    }

    fn is_readable(&self) -> bool {
        matches!(self.place.read(), Ok(Some(_))) || self.place.is_here() && self.copy.is_none()
    }

    fn in_place(&self, step: &Step, meant: Option<&str>) -> Result<InPlace, RotateError> {
        if !self.is_readable() {
            // Only the apiservers can tell.
            return Ok(InPlace::Yes);
        }
        let text = self.place.read()?;
        let now = text.as_deref().map(|text| hash(text)).unwrap_or_default();
        if now == step.after {
            return Ok(InPlace::Yes);
        }
        let says = |text: &str| bare(&examine(text).config);
        match (text, meant) {
            (Some(text), Some(meant)) if says(&text) == says(meant) => Ok(InPlace::As(now)),
            _ if now == step.before => Ok(InPlace::NotYet),
            _ => Ok(InPlace::Other),
        }
    }
}

impl Change {
    /// Whether the file is one that is known.
    fn accepted(&self, hands: &Hands) -> Result<bool, RotateError> {
        let now = hands.current()?.as_deref().map(|text| hash(text)).unwrap_or_default();
        let step = self.step.as_ref();
        Ok(self.base == now || step.is_some_and(|step| now == step.before || now == step.after))
    }
}

/// For [`super::clean`].
pub(super) fn config_now(hands: &Hands) -> Result<EncryptionConfiguration, RotateError> {
    Ok(readable(hands.current()?.as_ref().map(|text| text.as_str()))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file keeps its names, and a new provider gets one that is free.
    #[test]
    fn what_is_asked_is_called_as_the_file_calls_it() {
        let text = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\n\
            resources:\n- resources: [secrets]\n  providers:\n  \
            - kms: {apiVersion: v2, name: lastkey-2, endpoint: unix:///run/kms.sock}\n  \
            - kms: {apiVersion: v1, name: lastkey, endpoint: unix:///run/kms.sock}\n  \
            - kms: {apiVersion: v2, name: other, endpoint: unix:///run/other.sock}\n  \
            - identity: {}\n";
        let endpoint = "unix:///run/kms.sock".to_owned();
        let target = Target::Kms { name: "lastkey".to_owned(), endpoint };
        assert_eq!(asked(text, &target), ["lastkey-2"]);
        assert!(asked(text, &Target::Identity).is_empty());
        assert!(asked("", &target).is_empty());
    }
}
