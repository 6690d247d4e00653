//! The outage drill: a small installation is made to fail, and watched.
//!
//! 1. A server with one key runs in the scratch directory, and two apiservers on one etcd, each
//!    with a plugin of its own that reaches the server through a relay of ours.
//! 2. On each apiserver somebody writes and reads all the time ([`Probe`]).
//! 3. Each outage begins when all goes well, lasts for as long as was asked, and is undone. Then it
//!    is awaited that all goes well again.
//! 4. What was acknowledged is read back on both sides.
//!
//! What is observed stands beside what docs/plugin-outages.md leads one to expect ([`expect`]).

mod expect;
mod installation;
mod observed;
mod probing;
mod relay;

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use serde::Serialize;
use tokio::time::Instant;

use self::{
    installation::Installation,
    observed::{Course, Versions},
    probing::Probing,
    relay::Mode,
};
use crate::{DrillError, Event, Operator, Programs, Scratch, child::LOOK_EVERY};

pub use observed::{Observed, OutageReport, Row};
pub use probing::Probe;

/// Everything goes well for so long before an outage begins, and after it has ended.
const WELL_FOR: Duration = Duration::from_secs(4);
/// For the beginning, on a busy machine.
const SETTLE: Duration = Duration::from_secs(180);
/// A slow answer takes longer than any plugin waits.
const SLOW: Duration = Duration::from_secs(6);

/// What a probe is called.
#[must_use]
pub fn probe_name(probe: Probe) -> &'static str {
    match probe {
        Probe::Write => "write",
        Probe::Read => "read",
        Probe::ReadOther => "read the other's",
        Probe::List => "list",
        Probe::Ready => "readyz",
    }
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outage {
    /// The server is killed.
    ServerDown,
    /// Every answer of the server's takes six seconds.
    ServerSlow,
    /// The server is sealed.
    Sealed,
    /// The key is disabled.
    KeyDisabled,
    /// The first apiserver's plugin is killed.
    PluginKilled,
    /// The key is rotated while the second apiserver's plugin is cut off.
    StuckApiserver,
}

impl Outage {
    /// All of them, in the order in which they are played.
    pub const ALL: [Self; 6] = [
        Self::ServerDown,
        Self::ServerSlow,
        Self::Sealed,
        Self::KeyDisabled,
        Self::PluginKilled,
        Self::StuckApiserver,
    ];

    /// As it is given on a command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ServerDown => "server-down",
            Self::ServerSlow => "server-slow",
            Self::Sealed => "sealed",
            Self::KeyDisabled => "key-disabled",
            Self::PluginKilled => "plugin-killed",
            Self::StuckApiserver => "stuck-apiserver",
        }
    }

    /// What was done, and how it was undone.
    #[must_use]
    pub fn done(self) -> (&'static str, &'static str) {
        match self {
            Self::ServerDown => ("the server was killed", "it was started again"),
            Self::ServerSlow => ("every answer of the server took 6 s", "it was as fast as before"),
            Self::Sealed => ("the server was sealed", "it was unsealed"),
            Self::KeyDisabled => ("the key was disabled", "it was enabled"),
            Self::PluginKilled => {
                ("the plugin of apiserver one was killed", "it was started again")
            }
            Self::StuckApiserver => (
                "the key was rotated while the plugin of apiserver two was cut off from the server",
                "it was connected again",
            ),
        }
    }
}

impl fmt::Display for Outage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Outage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|outage| outage.name() == text);
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("there is no outage {text}; there are {names}")
        })
    }
}

/// Which outages are played, and for how long.
pub struct Outages {
    /// The programs.
    pub programs: Programs,
    /// Where the scratch directory is made.
    pub scratch_dir: PathBuf,
    /// Which.
    pub outages: Vec<Outage>,
    /// How long each of them lasts.
    pub length: Duration,
    /// How long it is awaited that all is well again.
    pub recovery: Duration,
    /// The plugins' `--lease`, where it is not the server's.
    pub lease: Option<Duration>,
    /// Their `--write-lease`.
    pub write_lease: Option<Duration>,
    /// Further flags of the apiservers.
    pub apiserver_flags: Vec<String>,
}

impl Outages {
    /// Plays them, one after the other.
    ///
    /// # Errors
    /// When the installation cannot be brought up, or falls apart by itself.
    pub async fn run(&self, operator: &mut dyn Operator) -> Result<OutageReport, DrillError> {
        let began = Instant::now();
        let scratch = Scratch::new(&self.scratch_dir)?;
        let mut installation = Installation::start(self, &scratch, operator).await?;
        let mut observed = Vec::with_capacity(self.outages.len());
        for outage in &self.outages {
            let one = self.play(*outage, &mut installation, operator).await?;
            let healed = one.healed;
            observed.push(one);
            if !healed {
                // the next one would show what this one has left
                break;
            }
        }
        Ok(OutageReport::new(self, observed, began.elapsed()))
    }

    async fn play(
        &self,
        outage: Outage,
        installation: &mut Installation,
        operator: &mut dyn Operator,
    ) -> Result<Observed, DrillError> {
        step(operator, &format!("{outage}: waiting until all goes well"));
        let before = installation.primary().await?;
        // Those who probe hold the apiservers only; the script changes all the rest.
        let apis = installation.apis();
        let namespace = format!("drill-{outage}");
        let late = |last: String| crate::child::late("the first Secret is written", SETTLE, &last);
        let start = Instant::now();
        let probing = loop {
            match Probing::begin([&apis[0], &apis[1]], &namespace).await {
                Ok(probing) => break probing,
                Err(last) if start.elapsed() > SETTLE => return Err(late(last)),
                Err(_) => tokio::time::sleep(LOOK_EVERY * 5).await,
            }
        };
        let script = async {
            let course = self.script(outage, (&probing, installation), operator).await;
            probing.stop();
            course
        };
        let (course, ()) = futures_util::future::join(script, probing.run()).await;
        let course = course?;
        step(operator, &format!("{outage}: reading back what was written"));
        let lost = probing.lost().await;
        let versions = Versions { before, after: installation.primary().await? };
        let under = installation.versions_of(&namespace).await?;
        let expected = expect::Expected::of(outage, self);
        Ok(Observed::of((outage, &course), &probing, (versions, &under), (lost, &expected)))
    }

    /// Waits, breaks, waits, mends, waits.
    async fn script(
        &self,
        outage: Outage,
        (probing, installation): (&Probing<'_>, &mut Installation),
        operator: &mut dyn Operator,
    ) -> Result<Course, DrillError> {
        let ready = well(probing, installation, SETTLE).await?;
        if ready.is_none() {
            let what = format!("{outage}: all goes well beforehand");
            return Err(crate::child::late(&what, SETTLE, &probing.last_error()));
        }
        let (done, undone) = outage.done();
        step(operator, &format!("{outage}: {done}; for {} s", self.length.as_secs()));
        let began = probing.now();
        installation.begin(outage).await?;
        let mut told = Instant::now();
        while probing.now() < began + self.length {
            installation.check()?;
            tokio::time::sleep(LOOK_EVERY).await;
            if told.elapsed() >= Duration::from_secs(1) {
                told = Instant::now();
                let (done, total) = (probing.now() - began, self.length);
                operator.tell(&Event::Progress {
                    done: done.as_secs().min(total.as_secs()),
                    total: total.as_secs(),
                });
            }
        }
        step(operator, &format!("{outage}: {undone}; waiting until all goes well"));
        let mended = probing.now();
        installation.end(outage).await?;
        let healed = self.healed(outage, probing, installation).await?;
        Ok(Course { began, mended, ended: probing.now(), healed })
    }

    /// When all went well again; after a rotation also: when both write under the new version.
    async fn healed(
        &self,
        outage: Outage,
        probing: &Probing<'_>,
        installation: &mut Installation,
    ) -> Result<Option<Duration>, DrillError> {
        let start = Instant::now();
        let mut healed = None;
        while start.elapsed() < self.recovery {
            healed =
                well(probing, installation, self.recovery.saturating_sub(start.elapsed())).await?;
            if healed.is_none() || outage != Outage::StuckApiserver {
                return Ok(healed);
            }
            let primary = installation.primary().await?;
            let newest = [0, 1].map(|side| probing.newest_of(side));
            let mut followed = true;
            for name in newest.into_iter().flatten() {
                let under = installation.version_of(probing.namespace(), &name).await?;
                followed &= under == Some(primary);
            }
            if followed {
                return Ok(healed);
            }
            tokio::time::sleep(LOOK_EVERY * 10).await;
        }
        Ok(healed.filter(|_| false))
    }
}

impl Installation {
    async fn begin(&mut self, outage: Outage) -> Result<(), DrillError> {
        match outage {
            Outage::ServerDown => self.kill_server(),
            Outage::ServerSlow => self.relay(|_| true, Mode::Slow(SLOW)),
            Outage::Sealed => self.seal(true).await?,
            Outage::KeyDisabled => self.disable_key().await?,
            Outage::PluginKilled => self.kill_plugin(),
            Outage::StuckApiserver => {
                self.relay(|side| side == 1, Mode::Hold);
                self.rotate().await?;
            }
        }
        Ok(())
    }

    async fn end(&mut self, outage: Outage) -> Result<(), DrillError> {
        match outage {
            Outage::ServerDown => self.start_server().await?,
            Outage::ServerSlow | Outage::StuckApiserver => self.relay(|_| true, Mode::Pass),
            Outage::Sealed => self.seal(false).await?,
            Outage::KeyDisabled => self.enable_key().await?,
            Outage::PluginKilled => self.start_plugin().await?,
        }
        Ok(())
    }

    fn relay(&self, which: impl Fn(usize) -> bool, mode: Mode) {
        for (index, side) in self.sides.iter().enumerate() {
            if which(index) {
                side.relay.set(mode);
            }
        }
    }
}

/// Since when all has gone well without a break, once that is long enough ago.
async fn well(
    probing: &Probing<'_>,
    installation: &mut Installation,
    patience: Duration,
) -> Result<Option<Duration>, DrillError> {
    let began = probing.now();
    let mut since = began;
    loop {
        installation.check()?;
        let now = probing.now();
        if let Some(bad) = probing.last_failure_since(began) {
            since = since.max(bad);
        }
        if now >= since + WELL_FOR && probing.all_well_since(since) {
            return Ok(Some(since));
        }
        if now > began + patience {
            return Ok(None);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn step(operator: &mut dyn Operator, what: &str) {
    operator.tell(&Event::Step(what.to_owned()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outage_has_a_name() {
        for outage in Outage::ALL {
            assert_eq!(outage.name().parse(), Ok(outage));
            assert_eq!(serde_json::json!(outage), outage.name());
        }
        assert!("fire".parse::<Outage>().unwrap_err().contains("stuck-apiserver"));
    }
}
