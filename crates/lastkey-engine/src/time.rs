//! Wall-clock instants and the clock they come from.
//!
//! The engine never asks the operating system for the time by itself: it is given a [`Clock`],
//! so that a test can be a year late.

use std::{
    fmt,
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A point in time: milliseconds since 1970-01-01T00:00:00Z, leap seconds ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

/// A text that is not an RFC 3339 instant, or one that no [`Timestamp`] can be.
#[derive(Debug, thiserror::Error)]
#[error(
    "not a time of the form 2026-01-31T12:00:00Z, from 0000-01-01T00:00:00Z to 9999-12-30T22:00:00Z"
)]
pub struct InvalidTimestamp;

impl Timestamp {
    /// The instant `millis` milliseconds after the Unix epoch.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// Whole seconds since the Unix epoch, rounded down.
    pub const fn as_seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// Reads an RFC 3339 instant.
    ///
    /// # Errors
    /// [`InvalidTimestamp`] for anything else.
    pub fn parse(text: &str) -> Result<Self, InvalidTimestamp> {
        let parsed: jiff::Timestamp = text.parse().map_err(|_| InvalidTimestamp)?;
        // The library reads years with a sign, too; RFC 3339 has none, and we could not write them.
        let millis = parsed.as_millisecond();
        if !(FIRST_MILLIS..=LAST_MILLIS).contains(&millis) {
            return Err(InvalidTimestamp);
        }
        Ok(Self(millis))
    }

    /// Time from `earlier` to this instant; zero if `earlier` is later.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// This instant and `duration` more, at most the largest representable one.
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    /// `YYYY-MM-DDThh:mm:ssZ`, the form of the Alibaba wire.
    pub fn to_seconds_text(self) -> String {
        let mut text: String = self.text()[..19].iter().copied().map(char::from).collect();
        text.push('Z');
        text
    }

    /// Shows its text, RFC 3339 with milliseconds.
    pub(crate) fn with_text<T>(self, show: impl FnOnce(&str) -> T) -> T {
        // ASCII by construction.
        show(std::str::from_utf8(&self.text()).unwrap_or_default())
    }

    /// RFC 3339 with milliseconds. The calendar is the library's; its formatter is passed by,
    /// because every request is recorded with its time.
    fn text(self) -> [u8; 24] {
        // From the year 0 to the library's last instant, in the year 9999.
        let millis = self.0.clamp(FIRST_MILLIS, LAST_MILLIS);
        let instant = jiff::Timestamp::from_millisecond(millis).unwrap_or_default();
        let civil = jiff::tz::Offset::UTC.to_datetime(instant);
        let mut text = *b"0000-00-00T00:00:00.000Z";
        digits(&mut text[..4], civil.year());
        digits(&mut text[5..7], civil.month().into());
        digits(&mut text[8..10], civil.day().into());
        digits(&mut text[11..13], civil.hour().into());
        digits(&mut text[14..16], civil.minute().into());
        digits(&mut text[17..19], civil.second().into());
        digits(&mut text[20..23], civil.millisecond());
        text
    }
}

/// The beginning of the year 0, RFC 3339's first.
const FIRST_MILLIS: i64 = -62_167_219_200_000;
/// The last whole second that the library's calendar has, less its largest offset.
const LAST_MILLIS: i64 = 253_402_207_200_000;

/// Writes a number that is not negative with as many digits as `into` has room for.
fn digits(into: &mut [u8], mut number: i16) {
    for digit in into.iter_mut().rev() {
        *digit = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 with milliseconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with_text(|text| f.write_str(text))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// Where the time comes from.
pub trait Clock: Send + Sync + 'static {
    /// The wall clock.
    fn now(&self) -> Timestamp;
    /// Running time since an arbitrary start; never goes back, counts suspend.
    fn running(&self) -> Duration;
}

/// The operating system's clocks (`CLOCK_REALTIME`, `CLOCK_BOOTTIME`).
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        Timestamp(t.tv_sec.saturating_mul(1000).saturating_add(t.tv_nsec / 1_000_000))
    }

    fn running(&self) -> Duration {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::new(u64::try_from(t.tv_sec).unwrap_or(0), u32::try_from(t.tv_nsec).unwrap_or(0))
    }
}

/// A clock that stands still until it is told otherwise, for tests.
#[derive(Debug)]
pub struct ManualClock {
    now: AtomicI64,
    running: AtomicI64,
}

impl ManualClock {
    /// A clock that shows `now`.
    pub fn at(now: Timestamp) -> Self {
        Self { now: AtomicI64::new(now.0), running: AtomicI64::new(0) }
    }

    /// Lets time pass: both clocks advance.
    pub fn advance(&self, by: Duration) {
        let millis = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        self.now.fetch_add(millis, Ordering::SeqCst);
        self.running.fetch_add(millis, Ordering::SeqCst);
    }

    /// Sets the wall clock alone, as an administrator or a broken time server would.
    pub fn jump_to(&self, now: Timestamp) {
        self.now.store(now.0, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.now.load(Ordering::SeqCst))
    }

    fn running(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.running.load(Ordering::SeqCst)).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_and_shows_milliseconds() {
        let t = Timestamp::from_millis(1_700_000_000_123);
        assert_eq!(t.to_string(), "2023-11-14T22:13:20.123Z");
        assert_eq!(t.to_seconds_text(), "2023-11-14T22:13:20Z");
        assert_eq!(Timestamp::parse(&t.to_string()).unwrap(), t);
        assert!(Timestamp::parse("yesterday").is_err());
    }

    proptest::proptest! {
        #[test]
        fn texts_are_those_of_the_calendar(millis in -62_167_219_200_000_i64..LAST_MILLIS) {
            let calendar = jiff::Timestamp::from_millisecond(millis).unwrap();
            let t = Timestamp::from_millis(millis);
            let expected = calendar.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string();
            proptest::prop_assert_eq!(t.to_string(), expected);
            let expected = calendar.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            proptest::prop_assert_eq!(t.to_seconds_text(), expected);
        }
    }

    /// Fuzzing (engine_names): a year before the calendar was read, and written as the year 0.
    #[test]
    fn what_cannot_be_written_is_not_read() {
        for text in ["-004114-11-11T11Z", "-000001-12-31T23:59:59Z", "9999-12-30T22:00:00.001Z"] {
            assert!(Timestamp::parse(text).is_err(), "{text}");
        }
        for text in ["0000-01-01T00:00:00.000Z", "9999-12-30T22:00:00.000Z"] {
            let bound = Timestamp::parse(text).unwrap();
            assert_eq!(bound.to_string(), text);
            let said = Timestamp::parse("9999-12-31T23:59:59Z").unwrap_err().to_string();
            assert!(said.contains(&bound.to_seconds_text()), "{said}");
        }
    }

    #[test]
    fn instants_beyond_four_digits_are_the_last_one() {
        assert_eq!(Timestamp::from_millis(i64::MAX).to_string(), "9999-12-30T22:00:00.000Z");
        assert_eq!(Timestamp::from_millis(i64::MIN).to_string(), "0000-01-01T00:00:00.000Z");
    }

    #[test]
    fn arithmetic_saturates() {
        let end = Timestamp::from_millis(i64::MAX);
        assert_eq!(end.after(Duration::MAX), end);
        assert_eq!(Timestamp::from_millis(0).since(end), Duration::ZERO);
    }
}
