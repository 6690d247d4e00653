//! Asks a cluster what it serves.
//!
//! A group that does not answer is not one that has nothing: whoever goes on without it leaves its
//! objects under a key that is then taken for free. So
//!
//! 1. the core group has to answer, and so has each group that a name is of (`widgets.example.org`,
//!    `*.example.org`): otherwise there is no answer at all, and the question may be put again;
//! 2. of the groups that only `*.*` covers, one that an aggregated apiserver has and that is away
//!    may stay away for ever. It is asked again for some seconds, and named in the answer then;
//! 3. which group versions other servers have is asked as well, where the account may see that:
//!    they keep their objects themselves, so nothing of them is missing.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};

use super::ApiServer;
use crate::cluster::{
    ApiError, Discovery,
    resource::{aggregated, group_versions},
};

/// So many group versions are asked for at once.
const AT_ONCE: usize = 8;
/// Before what did not answer, and is covered by `*.*` alone, is asked again.
const PAUSES: [Duration; 5] = [
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
];
const API_SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";

/// Which groups are asked for.
enum Wanted<'a> {
    /// All, and those that are away are named.
    Served,
    /// Those of a configuration's names.
    Named(Vec<&'a str>),
}

impl<'a> Wanted<'a> {
    fn by(names: &[&'a str]) -> Self {
        let groups = names.iter().map(|name| name.split_once('.').map_or("", |(_, group)| group));
        Self::Named(groups.collect())
    }

    fn has(&self, group: &str) -> bool {
        match self {
            Self::Served => true,
            Self::Named(groups) => groups.contains(&group) || groups.contains(&"*"),
        }
    }

    /// Whether nothing is known without it.
    fn needs(&self, group: &str) -> bool {
        group.is_empty() || matches!(self, Self::Named(groups) if groups.contains(&group))
    }
}

/// What one group version has said.
struct Asked {
    group: String,
    version: String,
    answer: Answer,
}

enum Answer {
    Resources(Bytes),
    /// It is not there any more.
    None,
    /// None, or that it cannot answer.
    Away(ApiError),
}

impl Asked {
    fn is_away(&self) -> bool {
        matches!(self.answer, Answer::Away(_))
    }

    fn shown(&self) -> String {
        format!("{}/{}", self.group, self.version)
    }

    fn path(&self) -> String {
        match self.group.is_empty() {
            true => format!("/api/{}", self.version),
            false => format!("/apis/{}/{}", self.group, self.version),
        }
    }
}

impl ApiServer {
    /// All that is served and can be listed. What does not answer is named in the answer.
    ///
    /// # Errors
    /// When an apiserver cannot be asked, the core group included.
    pub async fn discover(&self) -> Result<Discovery, ApiError> {
        self.discover_where(&Wanted::Served, &[]).await
    }

    /// What these names may stand for, as an EncryptionConfiguration has them: other groups are not
    /// asked for. What `*.*` alone covers and what has not answered for a quarter of a minute is named
    /// in the answer ([`Discovery::left_out`]).
    ///
    /// # Errors
    /// As [`ApiServer::discover`], and when a group that one of the names is of does not answer:
    /// [`ApiError::Undiscovered`] or [`ApiError::TooMany`]. It may a moment later.
    pub async fn discover_named(&self, names: &[&str]) -> Result<Discovery, ApiError> {
        self.discover_where(&Wanted::by(names), &PAUSES).await
    }

    async fn discover_where(
        &self,
        wanted: &Wanted<'_>,
        pauses: &[Duration],
    ) -> Result<Discovery, ApiError> {
        let groups = group_versions(&self.read("/apis").await?.body);
        let groups = groups.ok_or_else(|| self.garbage("groups that cannot be read"))?;
        let groups = std::iter::once((String::new(), "v1".to_owned())).chain(groups);
        let groups = groups.filter(|(group, _)| wanted.has(group));
        let asked = groups.map(|(group, version)| Asked { group, version, answer: Answer::None });
        let mut asked: Vec<Asked> = asked.collect();
        self.ask_those(&mut asked, |_| true).await?;
        let mut others = None;
        for pause in pauses.iter().map(Some).chain([None]) {
            needed(&asked, wanted)?;
            if !asked.iter().any(Asked::is_away) {
                break;
            }
            let others = self.others_once(&mut others).await;
            let may_be_ours = |one: &Asked| one.is_away() && !others.contains(&one.shown());
            let (Some(pause), true) = (pause, asked.iter().any(may_be_ours)) else { break };
            tokio::time::sleep(*pause).await;
            self.ask_those(&mut asked, may_be_ours).await?;
        }
        let mut discovery = self.sum(&asked)?;
        if !discovery.unavailable.is_empty() || !discovery.lossy.is_empty() {
            discovery.settle(self.others_once(&mut others).await);
        }
        Ok(discovery)
    }

    /// Asks some of them, and keeps their order.
    async fn ask_those(
        &self,
        all: &mut [Asked],
        which: impl Fn(&Asked) -> bool,
    ) -> Result<(), ApiError> {
        let paths = all.iter().enumerate().filter(|(_, one)| which(one));
        let paths: Vec<_> = paths.map(|(at, one)| (at, one.path())).collect();
        let answers = stream::iter(paths).map(|(at, path)| async move {
            let answer = match self.read(&path).await {
                Ok(reply) => Answer::Resources(reply.body),
                Err(ApiError::NotFound) => Answer::None,
                Err(error @ (ApiError::Failed { .. } | ApiError::TooMany { .. })) => {
                    Answer::Away(error)
                }
                Err(error) => return Err(error),
            };
            Ok((at, answer))
        });
        let answers: Vec<Result<_, ApiError>> = answers.buffered(AT_ONCE).collect().await;
        for answer in answers {
            let (at, answer) = answer?;
            if let Some(one) = all.get_mut(at) {
                one.answer = answer;
            }
        }
        Ok(())
    }

    fn sum(&self, asked: &[Asked]) -> Result<Discovery, ApiError> {
        let mut discovery = Discovery::default();
        for one in asked {
            match &one.answer {
                Answer::Resources(body) => discovery
                    .add(&one.group, &one.version, body)
                    .ok_or_else(|| self.garbage("resources that cannot be read"))?,
                Answer::None => {}
                Answer::Away(_) => discovery.unavailable.push(one.shown()),
            }
        }
        Ok(discovery)
    }

    /// The group versions that other servers have, asked at most once; none where that cannot be seen.
    async fn others_once<'a>(
        &self,
        known: &'a mut Option<BTreeSet<String>>,
    ) -> &'a BTreeSet<String> {
        if known.is_none() {
            let others = match self.read(API_SERVICES).await {
                Ok(reply) => aggregated(&reply.body).unwrap_or_default(),
                Err(error) => {
                    tracing::debug!(%error, "which groups other servers have is not known");
                    BTreeSet::new()
                }
            };
            *known = Some(others);
        }
        known.get_or_insert_default()
    }
}

/// That every group has answered without which nothing is known.
fn needed(asked: &[Asked], wanted: &Wanted<'_>) -> Result<(), ApiError> {
    for one in asked.iter().filter(|one| wanted.needs(&one.group)) {
        match &one.answer {
            Answer::Away(ApiError::Failed { status, .. }) => {
                let group_version = one.shown().trim_start_matches('/').to_owned();
                return Err(ApiError::Undiscovered { group_version, status: *status });
            }
            Answer::Away(error) => return Err(error.clone()),
            Answer::Resources(_) | Answer::None => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
