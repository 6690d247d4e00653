//! The outage drill: a small installation is made to fail, and watched.
//!
//! 1. A server with one key runs in the scratch directory, and two apiservers on one etcd, each
//!    with a plugin of its own that reaches the server through a relay of ours.
//! 2. On each apiserver somebody writes and reads all the time ([`Probe`]).
//! 3. Each outage begins when all goes well, lasts for as long as was asked, and is undone. Then it
//!    is awaited that all goes well again.
//! 4. What was acknowledged is read back on both sides.
//!
//! It can be interrupted at any time: what was seen until then is reported.
//!
//! What is observed stands beside what docs/plugin-outages.md leads one to expect ([`expect`]).

mod expect;
mod installation;
mod observed;
mod probing;
mod relay;

use std::{
    cell::Cell,
    fmt,
    path::PathBuf,
    pin::{Pin, pin},
    str::FromStr,
    time::Duration,
};

use lastkey_crypto::KeyVersionId;
use lastkey_kubernetes::cluster::ApiServer;
use serde::Serialize;
use tokio::time::Instant;

use self::{
    installation::Installation,
    observed::{After, Course, Versions},
    probing::Probing,
    relay::Mode,
};
use crate::{DrillError, Event, Operator, Programs, Scratch, child::LOOK_EVERY};

pub use observed::{ErrorText, Observed, OutageReport, Row};
pub use probing::Probe;

/// Everything goes well for so long before an outage begins, and after it has ended.
const WELL_FOR: Duration = Duration::from_secs(4);
/// For the beginning, on a busy machine.
const SETTLE: Duration = Duration::from_secs(180);
/// Starting takes about so long, and reading back.
const STARTING: Duration = Duration::from_secs(30);
const READ_BACK: Duration = Duration::from_secs(5);
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

/// How an outage came to its end before it was over.
enum Cut {
    /// Somebody wanted it to end.
    Interrupted,
    /// Something of the installation failed that nobody made fail.
    Failed(DrillError),
}

impl From<DrillError> for Cut {
    fn from(error: DrillError) -> Self {
        Self::Failed(error)
    }
}

impl Cut {
    fn in_words(&self) -> String {
        match self {
            Self::Interrupted => "interrupted".to_owned(),
            Self::Failed(error) => error.to_string(),
        }
    }
}

impl Outages {
    /// How long it will take: about, and at most unless a machine is very slow.
    #[must_use]
    pub fn takes(&self) -> (Duration, Duration) {
        let (mut about, mut most) = (STARTING, STARTING + SETTLE);
        for outage in &self.outages {
            let heals = expect::Expected::of(*outage, self).healed_within;
            about += WELL_FOR + self.length + heals.min(self.recovery) / 2 + READ_BACK;
            most += SETTLE + self.length + self.recovery + READ_BACK * 4;
        }
        (about, most)
    }

    /// Plays them, one after the other, until `stop` resolves. What was seen until then, or until
    /// something fell apart that nobody broke, is in the report all the same.
    ///
    /// # Errors
    /// When the installation cannot be brought up, so that nothing was seen.
    pub async fn run(
        &self,
        operator: &mut dyn Operator,
        stop: impl Future<Output = ()>,
    ) -> Result<OutageReport, DrillError> {
        let began = Instant::now();
        let mut stop = pin!(stop);
        let (about, at_most) = self.takes();
        operator.tell(&Event::Plan { outages: self.outages.len(), about, at_most });
        let scratch = Scratch::new(&self.scratch_dir)?.swept_by(&self.programs.lastkey)?;
        let installation = tokio::select! {
            biased;
            () = &mut stop => return Err(DrillError::Interrupted),
            installation = Installation::start(self, &scratch, operator) => installation,
        };
        let mut installation = installation?;
        let (mut observed, mut cut) = (Vec::with_capacity(self.outages.len()), None);
        for outage in &self.outages {
            let (one, end) = self.play(*outage, (&mut installation, operator), stop.as_mut()).await;
            // the next one would show what this one has left
            let over = end.is_some() || one.as_ref().is_some_and(|one| !one.healed);
            observed.extend(one);
            cut = end;
            if over {
                break;
            }
        }
        let cut = cut.map(|cut| cut.in_words());
        Ok(OutageReport::new(self, (observed, cut), began.elapsed()))
    }

    /// What was seen, if it has begun at all; and why it was cut short, if it was.
    async fn play(
        &self,
        outage: Outage,
        (installation, operator): (&mut Installation, &mut dyn Operator),
        mut stop: Pin<&mut impl Future<Output = ()>>,
    ) -> (Option<Observed>, Option<Cut>) {
        step(operator, &format!("{outage}: waiting until all goes well"));
        // Those who probe hold the apiservers only; the script changes all the rest.
        let apis = installation.apis();
        let begun = tokio::select! {
            biased;
            () = &mut stop => Err(Cut::Interrupted),
            begun = self.begin(outage, [&apis[0], &apis[1]], installation) => {
                begun.map_err(Cut::Failed)
            }
        };
        let (probing, before) = match begun {
            Ok(begun) => begun,
            Err(cut) => return (None, Some(cut)),
        };
        let course = Cell::new(Course::default());
        let played = {
            let mut probes = pin!(probing.run());
            let script = async {
                tokio::select! {
                    biased;
                    () = &mut stop => Err(Cut::Interrupted),
                    done = self.script(outage, (&probing, &mut *installation, &course), operator) => {
                        done.map_err(Cut::Failed)
                    }
                }
            };
            let played = tokio::select! {
                played = script => played,
                // they end when they are told to
                () = &mut probes => Ok(()),
            };
            probing.stop();
            // what is under way is waited for, unless somebody waits for us
            if played.is_ok() {
                probes.await;
            }
            played
        };
        let course = Course { ended: probing.now(), ..course.get() };
        let expected = expect::Expected::of(outage, self);
        let seen = |after: Option<&After>| {
            let of = (outage, &course, &expected);
            course.began.map(|began| Observed::of(of, began, (&probing, after)))
        };
        if let Err(cut) = played {
            return (seen(None), Some(cut));
        }
        step(operator, &format!("{outage}: reading back what was written"));
        let after = tokio::select! {
            biased;
            () = &mut stop => Err(Cut::Interrupted),
            after = afterwards(&probing, installation, before) => after.map_err(Cut::Failed),
        };
        match after {
            Ok(after) => (seen(Some(&after)), None),
            Err(cut) => (seen(None), Some(cut)),
        }
    }

    /// The probes of an outage, and the version that encrypts before it.
    async fn begin<'a>(
        &self,
        outage: Outage,
        apis: [&'a ApiServer; 2],
        installation: &Installation,
    ) -> Result<(Probing<'a>, KeyVersionId), DrillError> {
        let before = installation.primary().await?;
        let namespace = format!("drill-{outage}");
        let start = Instant::now();
        loop {
            match Probing::begin(apis, &namespace).await {
                Ok(probing) => return Ok((probing, before)),
                Err(last) if start.elapsed() > SETTLE => {
                    return Err(crate::child::late("the first Secret is written", SETTLE, &last));
                }
                Err(_) => tokio::time::sleep(LOOK_EVERY * 5).await,
            }
        }
    }

    /// Waits, breaks, waits, mends, waits. How far it is stands in `course`.
    async fn script(
        &self,
        outage: Outage,
        (probing, installation, course): (&Probing<'_>, &mut Installation, &Cell<Course>),
        operator: &mut dyn Operator,
    ) -> Result<(), DrillError> {
        let ready = well(probing, installation, SETTLE).await?;
        if ready.is_none() {
            let what = format!("{outage}: all goes well beforehand");
            return Err(crate::child::late(&what, SETTLE, &probing.last_error()));
        }
        let (done, undone) = outage.done();
        step(operator, &format!("{outage}: {done}; for {} s", self.length.as_secs()));
        let began = probing.now();
        course.set(Course { began: Some(began), ..Course::default() });
        installation.begin(outage).await?;
        let mut told = Instant::now();
        while probing.now() < began + self.length {
            installation.check()?;
            tokio::time::sleep(LOOK_EVERY).await;
            if told.elapsed() >= Duration::from_secs(1) {
                told = Instant::now();
                let elapsed = (probing.now() - began).min(self.length);
                operator.tell(&Event::Elapsed { elapsed, total: self.length });
            }
        }
        step(operator, &format!("{outage}: {undone}; waiting until all goes well"));
        let mended = probing.now();
        course.set(Course { mended: Some(mended), ..course.get() });
        installation.end(outage).await?;
        let healed = self.healed(outage, probing, installation).await?;
        course.set(Course { healed, ..course.get() });
        Ok(())
    }

    /// When all went well again; after a rotation also: when both write under the new version.
    async fn healed(
        &self,
        outage: Outage,
        probing: &Probing<'_>,
        installation: &mut Installation,
    ) -> Result<Option<Duration>, DrillError> {
        let start = Instant::now();
        while start.elapsed() < self.recovery {
            let patience = self.recovery.saturating_sub(start.elapsed());
            let healed = well(probing, installation, patience).await?;
            if healed.is_none() || outage != Outage::StuckApiserver {
                return Ok(healed);
            }
            if let Some(followed) = follow(probing, installation).await? {
                return Ok(healed.max(Some(followed)));
            }
            tokio::time::sleep(LOOK_EVERY * 10).await;
        }
        Ok(None)
    }
}

/// When both apiservers were seen to write under the newest version.
async fn follow(
    probing: &Probing<'_>,
    installation: &Installation,
) -> Result<Option<Duration>, DrillError> {
    let primary = installation.primary().await?;
    let mut last = Duration::ZERO;
    for newest in [0, 1].map(|side| probing.newest_of(side)).into_iter().flatten() {
        if installation.version_of(probing.namespace(), &newest.name).await? != Some(primary) {
            return Ok(None);
        }
        last = last.max(newest.at);
    }
    Ok(Some(last))
}

/// What is looked at once it is over.
async fn afterwards(
    probing: &Probing<'_>,
    installation: &Installation,
    before: KeyVersionId,
) -> Result<After, DrillError> {
    let lost = probing.lost().await;
    let versions = Versions { before, after: installation.primary().await? };
    let under = installation.versions_of(probing.namespace()).await?;
    Ok(After { lost, versions, under })
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

/// A drill as tests want it.
#[cfg(test)]
fn outages_of(outages: &[Outage], length: Duration) -> Outages {
    Outages {
        programs: Programs {
            lastkey: PathBuf::new(),
            kube_apiserver: PathBuf::new(),
            etcd: PathBuf::new(),
            etcdutl: None,
        },
        scratch_dir: PathBuf::new(),
        outages: outages.to_vec(),
        length,
        recovery: length,
        lease: None,
        write_lease: None,
        apiserver_flags: Vec::new(),
    }
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

    #[test]
    fn how_long_it_takes_is_said_beforehand() {
        let four = Duration::from_secs(240);
        let drill = |outages: &[Outage]| outages_of(outages, four).takes();
        let (about, most) = drill(&[Outage::Sealed]);
        assert!(about > four && about < four * 2, "{about:?}");
        assert!(most >= four * 2 + SETTLE && most < four * 5, "{most:?}");
        let (all, _) = drill(&Outage::ALL);
        assert!(all > four * 6 && all < about * 7, "{all:?}");
    }
}
