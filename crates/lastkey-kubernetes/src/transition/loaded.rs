//! Which apiservers work by a configuration, as their metrics tell.
//!
//! From 1.36 on an apiserver names the hash of the file that it works by. Before that it counts how
//! often it has loaded the file anew, and says when it was started: either has to have happened
//! since the file was replaced, and where the file has a KMS, the apiserver has to have asked its
//! plugin, which one does not that was started with an older file, or with none. An apiserver that
//! does not load it by itself has to be restarted, and so has one that does not say that it has: 1.28
//! and earlier may load it and count nothing.
//!
//! A file that is as it should be already, when a change begins, may not have been loaded yet all the
//! same: somebody has just put it there, or a change was given up while it was waited for. A count
//! that stands still says nothing then ([`Seen::works_by`]).

use std::time::Duration;

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use crate::{
    cluster::{ApiError, ApiServer},
    coverage::samples,
    rotation::{hash_of, told_last},
};

const HASH: &str = "apiserver_encryption_config_controller_last_config_info";
const STARTED: &str = "process_start_time_seconds";
/// The newer name has a label for the outcome, the older one (up to 1.29) counts good ones alone.
const RELOADS: [&str; 2] = [
    "apiserver_encryption_config_controller_automatic_reloads_total",
    "apiserver_encryption_config_controller_automatic_reload_success_total",
];
const RELOADED: &str =
    "apiserver_encryption_config_controller_automatic_reload_last_timestamp_seconds";
const BUILD: &str = "kubernetes_build_info";
/// Up to this minor release the counts may be missing; those of later ones are missing until they count.
const LAST_SILENT: u32 = 28;
/// An apiserver that loads files by itself looks once a minute, and takes a while for its plugins.
pub(crate) const SURELY_LOADED: Duration = Duration::from_secs(120);
/// When a process was started is told up to a second too early or too late.
const START_IS_WITHIN: f64 = 1.0;

/// What one apiserver said at some moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Seen {
    /// Which one.
    pub url: String,
    /// The hashes of the files it has worked by, where it says so; it works by the last one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hashes: Vec<String>,
    /// When it was started, in seconds since 1970 by its own clock.
    pub started: f64,
    /// How often it has loaded the file anew since.
    pub reloads: f64,
    /// When it failed to, last; after the last success.
    pub failed: Option<f64>,
    /// The providers whose plugins have told it a key id since it was started.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub told: Vec<String>,
    /// Whether it counts no reloads at all, so that nobody can see one.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub silent: bool,
}

/// Since when a file is as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Age {
    /// In seconds since 1970 by the machine that it lies on; `None` where it does not lie here.
    pub since: Option<f64>,
    /// At least for so long.
    pub lasts: Duration,
}

impl Seen {
    /// Reads an apiserver's metrics.
    pub fn read(url: &str, metrics: &str) -> Self {
        let hashes = samples(metrics, &[HASH]);
        let hashes = hashes.filter(|sample| sample.value > 0.0);
        let hashes = hashes.filter_map(|sample| sample.label("hash").map(str::to_owned)).collect();
        let good = |label: Option<&str>| label.is_none_or(|status| status == "success");
        let last = |status: &str| {
            let own = samples(metrics, &[RELOADED]).filter(|s| s.label("status") == Some(status));
            exact(own.map(|sample| sample.value).fold(0.0, f64::max))
        };
        let (failed, succeeded) = (last("failure"), last("success"));
        Self {
            url: url.to_owned(),
            hashes,
            started: exact(samples(metrics, &[STARTED]).map(|s| s.value).fold(0.0, f64::max)),
            reloads: samples(metrics, &RELOADS)
                .filter(|sample| good(sample.label("status")))
                .map(|sample| exact(sample.value).round())
                .fold(0.0, |sum, value| exact(sum + value)),
            failed: (failed > succeeded).then_some(failed),
            told: told_last(metrics).into_keys().collect(),
            silent: minor(metrics).is_some_and(|minor| minor <= LAST_SILENT)
                && samples(metrics, &[RELOADED, RELOADS[0], RELOADS[1]]).next().is_none(),
        }
    }

    /// Whether it has tried to load a file since `before`, and could not.
    pub fn fails_since(&self, before: &Self) -> bool {
        self.failed.is_some() && self.failed != before.failed
    }

    /// Why it does not work by the file of that hash yet, which was put in place after `before` and
    /// has the plugins of the providers `asks` asked.
    pub fn why_not(&self, before: &Self, hash: &str, asks: &[String]) -> Option<String> {
        let failed = self.fails_since(before);
        let loaded = match self.hashes.is_empty() {
            false => self.hashes.iter().any(|known| known == hash),
            // The same process has loaded it since, or another process has been started since.
            true => match self.started == before.started {
                true => self.reloads > before.reloads,
                false => self.started > before.started,
            },
        };
        let unasked = self.unasked(asks).filter(|_| loaded && self.hashes.is_empty());
        if unasked.is_some() {
            return unasked;
        }
        match (loaded, failed) {
            (true, _) => None,
            (false, true) => Some(
                "could not load it, and goes on by the old one: `lastkey cluster doctor` and its \
                 log say why"
                    .to_owned(),
            ),
            (false, false) => Some("has not loaded it yet".to_owned()),
        }
    }

    /// Whether it has to have loaded a file that is as it was for that long, although nothing was seen
    /// to happen: it was started since, or it loads files by itself, has had the time to, and has not
    /// failed.
    pub fn works_by(&self, file: Age, asks: &[String]) -> bool {
        let started = file.since.is_some_and(|since| self.started >= since + START_IS_WITHIN);
        let by_itself = self.reloads > 0.0 && self.failed.is_none() && file.lasts >= SURELY_LOADED;
        (started || by_itself) && self.unasked(asks).is_none()
    }

    fn unasked(&self, asks: &[String]) -> Option<String> {
        let kms = asks.iter().find(|kms| !self.told.contains(kms))?;
        Some(format!(
            "has not asked the plugin of the provider {kms}: was it started with another file, \
             or without --encryption-provider-config?"
        ))
    }
}

/// The minor release, such as 28.
fn minor(metrics: &str) -> Option<u32> {
    let build = samples(metrics, &[BUILD]).next()?;
    let minor = build.label("minor")?;
    let end = minor.find(|c: char| !c.is_ascii_digit()).unwrap_or(minor.len());
    minor[..end].parse().ok()
}

/// A number that is the same after it was stored as JSON, which cannot hold infinity and is not read
/// back to the last bit: times to the millisecond. What is no time or count is 0.
fn exact(value: f64) -> f64 {
    if value.abs() < 1e12 { (value * 1e3).round() / 1e3 } else { 0.0 }
}

/// What each apiserver says, or why it cannot be asked.
pub async fn look(api: &ApiServer) -> Vec<Result<Seen, (String, ApiError)>> {
    let asked = api.urls().enumerate().map(|(server, url)| {
        let url = url.to_string();
        async move {
            match api.metrics(server).await {
                Ok(metrics) => Ok(Seen::read(&url, &metrics)),
                Err(error) => Err((url, error)),
            }
        }
    });
    join_all(asked).await
}

/// The names of the providers whose plugins have told any apiserver one of these key ids last.
pub async fn providers_told(api: &ApiServer, key_ids: &[String]) -> Vec<String> {
    let hashes: Vec<String> = key_ids.iter().map(|id| hash_of(id)).collect();
    let asked = (0..api.urls().len()).map(|server| api.metrics(server));
    let mut names = Vec::new();
    for metrics in join_all(asked).await.into_iter().flatten() {
        for (provider, told) in told_last(&metrics) {
            if told.hashes.iter().any(|hash| hashes.contains(hash)) && !names.contains(&provider) {
                names.push(provider);
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As 1.31 and 1.37 wrote them.
    fn metrics(hash: Option<&str>, started: f64, reloads: u32) -> String {
        let mut text = format!("# HELP x y\n{STARTED} {started}\n");
        if reloads > 0 {
            text += &format!(
                "{}{{apiserver_id_hash=\"sha256:7\",status=\"success\"}} {reloads}\n",
                RELOADS[0]
            );
            text +=
                &format!("{}{{apiserver_id_hash=\"sha256:7\",status=\"failure\"}} 9\n", RELOADS[0]);
            text += &format!(
                "{RELOADED}{{apiserver_id_hash=\"sha256:7\",status=\"success\"}} 1.7953813952864282e+09\n"
            );
        }
        if let Some(hash) = hash {
            text += &format!("{HASH}{{apiserver_id_hash=\"sha256:7\",hash=\"{hash}\"}} 1\n");
        }
        text
    }

    fn seen(hash: Option<&str>, started: f64, reloads: u32) -> Seen {
        Seen::read("u", &metrics(hash, started, reloads))
    }

    #[test]
    fn what_is_loaded_is_told_by_hash_reload_or_start() {
        let loaded = |now: &Seen, before: &Seen| now.why_not(before, "sha256:new", &[]).is_none();
        // 1.37: nothing but the hash counts.
        let before = seen(Some("sha256:old"), 1.0, 0);
        assert!(!loaded(&seen(Some("sha256:old"), 5.0, 3), &before));
        assert!(loaded(&seen(Some("sha256:new"), 1.0, 1), &before));
        // 1.31: a reload of the same process, or another process.
        let before = seen(None, 1.795_381_211_14e9, 2);
        assert_eq!(before.reloads, 2.0);
        assert!(!loaded(&before.clone(), &before));
        assert!(loaded(&seen(None, 1.795_381_211_14e9, 3), &before));
        assert!(loaded(&seen(None, 1.795_381_299e9, 0), &before));
        // One that answers with an older start is another one behind the same address.
        assert!(!loaded(&seen(None, 1.0, 3), &before));
    }

    /// Up to 1.35, a start says nothing of the file that it was with.
    #[test]
    fn one_that_was_started_with_another_file_has_not_loaded_this_one() {
        let before = seen(None, 1.0, 2);
        let started = seen(None, 5.0, 0);
        let why = started.why_not(&before, "sha256:new", &["lastkey".to_owned()]).unwrap();
        assert!(why.contains("has not asked the plugin of the provider lastkey"), "{why}");
        let told = |provider: &str| {
            let text = format!(
                "apiserver_envelope_encryption_key_id_hash_status_last_timestamp_seconds\
                 {{key_id_hash=\"sha256:1\",provider_name=\"{provider}\"}} 6\n"
            );
            Seen::read("u", &(metrics(None, 5.0, 0) + &text))
        };
        assert!(told("another").why_not(&before, "sha256:new", &["lastkey".to_owned()]).is_some());
        assert_eq!(told("lastkey").why_not(&before, "sha256:new", &["lastkey".to_owned()]), None);
        // From 1.36 on the hash says it all.
        let (old, new) = (seen(Some("sha256:old"), 1.0, 0), seen(Some("sha256:new"), 5.0, 0));
        assert_eq!(new.why_not(&old, "sha256:new", &["lastkey".to_owned()]), None);
    }

    /// A count that stands still says nothing of a file that nobody was seen to change.
    #[test]
    fn a_file_that_was_there_before_is_not_loaded_by_that_alone() {
        let of = |started: f64, reloads: u32| seen(None, started, reloads);
        let age =
            |since: Option<f64>, seconds: u64| Age { since, lasts: Duration::from_secs(seconds) };
        let minutes = SURELY_LOADED.as_secs();
        // Started before it, or in the same second; without a file to look at.
        assert!(!of(100.0, 0).works_by(age(Some(100.0), minutes), &[]));
        assert!(!of(100.9, 0).works_by(age(Some(100.0), minutes), &[]));
        assert!(of(101.0, 0).works_by(age(Some(100.0), 1), &[]));
        assert!(!of(101.0, 0).works_by(age(None, 1), &[]));
        // One that loads by itself has done so after a while, unless it fails.
        assert!(!of(1.0, 1).works_by(age(Some(100.0), minutes - 1), &[]));
        assert!(of(1.0, 1).works_by(age(Some(100.0), minutes), &[]));
        assert!(of(1.0, 1).works_by(age(None, minutes), &[]));
        let fails = Seen { failed: Some(7.0), ..of(1.0, 1) };
        assert!(!fails.works_by(age(None, minutes), &[]));
        // It asks no plugin: it was started with another file.
        assert!(!of(101.0, 0).works_by(age(Some(100.0), 1), &["lastkey".to_owned()]));
    }

    /// 1.28.0 has none of these counts, later ones none before the first reload.
    #[test]
    fn a_release_that_counts_no_reloads_is_known() {
        let of = |minor: &str, more: &str| {
            let build = format!("{BUILD}{{git_version=\"v1\",major=\"1\",minor=\"{minor}\"}} 1\n");
            Seen::read("u", &(metrics(None, 1.0, 0) + &build + more)).silent
        };
        assert!(of("28", "") && of("27+", ""));
        assert!(!of("28", &format!("{} 0\n", RELOADS[1])));
        assert!(!of("29", "") && !of("31", "") && !seen(None, 1.0, 0).silent);
    }

    #[test]
    fn a_failure_since_is_told() {
        let before = seen(Some("sha256:old"), 1.0, 1);
        let text = metrics(Some("sha256:old"), 1.0, 1)
            + &format!("{RELOADED}{{status=\"failure\"}} 1.8e+09\n");
        let now = Seen::read("u", &text);
        assert!(now.why_not(&before, "sha256:new", &[]).unwrap().contains("could not load"));
        assert_eq!(now.why_not(&now.clone(), "sha256:new", &[]).unwrap(), "has not loaded it yet");
        let stored = |seen: &Seen| serde_json::to_string(seen).unwrap();
        assert_eq!(serde_json::from_str::<Seen>(&stored(&now)).unwrap(), now);
        // Numbers that JSON has no word for, or that it does not give back to the last bit.
        for odd in ["+Inf", "NaN", "1e308", "1795381395.2864281", "-1.7953813952864282e+09", "0.1"]
        {
            let mut text = format!("{STARTED} {odd}\n");
            for label in ["success", "failure"] {
                text += &format!("{}{{status=\"{label}\"}} {odd}\n", RELOADS[0]);
                text += &format!("{}{{status=\"{label}\"}} {odd}\n", RELOADS[1]);
            }
            text += &format!("{RELOADED}{{status=\"failure\"}} {odd}\n");
            let now = Seen::read("u", &text);
            assert_eq!(serde_json::from_str::<Seen>(&stored(&now)).unwrap(), now, "{odd}");
        }
    }
}
