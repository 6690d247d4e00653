//! What kubelets ask in vain, summed up.
//!
//! Who has a certificate of a cluster's CA is heard before anybody has approved it, and may ask for as
//! long as it likes. Each request that changed something has its record, as everybody's has. Of those
//! that changed nothing, junk, refusals and `waiting` told once more, each node's first of an outcome
//! has one; the others are counted until the next summary. So nobody fills the disk who was not let in.

use std::{
    collections::{HashMap, HashSet},
    mem,
    time::Duration,
};

use lastkey_crypto::ClusterId;
use parking_lot::Mutex;

use crate::{
    Caller, Error,
    action::Action,
    audit::Record,
    caller::{Principal, Source},
    engine::Core,
    node::NodeName,
};

/// They are summed up this often.
pub(crate) const SUM_UP_EVERY: Duration = Duration::from_secs(60);
/// Until then at most so many have records of their own: a CA can name any number of nodes.
const MAX_RECORDED: usize = 64;
/// At most this many kubelets, and addresses, are named in one summary.
const MAX_NAMED: usize = 8;

/// Requests since the last summary, by their outcome.
#[derive(Default)]
pub(crate) struct VainRequests(Mutex<HashMap<&'static str, Vain>>);

#[derive(Default)]
struct Vain {
    /// Whose first request of this outcome has a record.
    recorded: HashSet<(ClusterId, NodeName)>,
    /// How many came after those.
    count: u64,
    kubelets: Vec<String>,
    sources: Vec<Source>,
}

impl VainRequests {
    /// Whether this one is counted; otherwise it has a record.
    fn counts(&self, caller: &Caller, outcome: &'static str) -> bool {
        let Principal::Kubelet { cluster, node, .. } = &caller.principal else { return false };
        let mut all = self.0.lock();
        let recorded: usize = all.values().map(|vain| vain.recorded.len()).sum();
        let vain = all.entry(outcome).or_default();
        if recorded < MAX_RECORDED && vain.recorded.insert((*cluster, node.clone())) {
            return false;
        }
        vain.count += 1;
        if vain.kubelets.len() < MAX_NAMED {
            let kubelet = caller.principal.to_string();
            if !vain.kubelets.contains(&kubelet) {
                vain.kubelets.push(kubelet);
            }
        }
        let is_known = |known: &Source| same_host(*known, caller.source);
        if vain.sources.len() < MAX_NAMED && !vain.sources.iter().any(is_known) {
            vain.sources.push(caller.source);
        }
        true
    }
}

/// Each connection has another port.
fn same_host(one: Source, other: Source) -> bool {
    match (one, other) {
        (Source::Network(one), Source::Network(other)) => one.ip() == other.ip(),
        (one, other) => one == other,
    }
}

impl Core {
    /// Records how a command that changed nothing has ended, or counts it.
    pub(crate) async fn record_end(
        &self,
        caller: &Caller,
        record: Record,
        (outcome, latency): (&'static str, Duration),
    ) -> Result<(), Error> {
        if self.vain.counts(caller, outcome) {
            // Nobody is answered while nothing can be recorded.
            return Ok(self.audit.health()?);
        }
        self.audit.append(record.finish(outcome, latency)).await?;
        Ok(())
    }

    /// Writes down what was counted, and begins anew.
    pub(crate) async fn sum_up_kubelets(&self) {
        let all = mem::take(&mut *self.vain.0.lock());
        for (outcome, vain) in all.into_iter().filter(|(_, vain)| vain.count > 0) {
            let caller = Caller::system(&*self.entropy);
            let mut record = Record::begin(Action::EnrolNode.name(), &caller, self.clock.now());
            record.number("count", vain.count);
            record.field("kubelets", vain.kubelets.join(" "));
            let sources: Vec<String> = vain.sources.iter().map(ToString::to_string).collect();
            record.field("sources", sources.join(" "));
            let _ = self.audit.append(record.finish(outcome, Duration::ZERO)).await;
        }
    }
}
