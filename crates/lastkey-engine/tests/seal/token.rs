//! Root keys under a token: one that is away, refuses, or is another one; and what is left in the
//! file that they come from.

use std::{
    os::unix::fs::PermissionsExt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use lastkey_crypto::{Entropy, KeyMaterial, share::Share};
use lastkey_engine::{
    FileSeal, Instance, Life, OperatorError, Order, Outcome, Parts, RootPrint, Seal, SealEntry,
    SealError, SealKind, SealRecord, Seals, With,
};
use lastkey_store::{Store, Transaction};
use parking_lot::Mutex;
use serde_json::json;

use super::{
    TO_SHARES, assert_readable, caller, doubt::Away, encrypted, order, ordered, parts, started,
    support::World, texts, unseal, until,
};

/// A token that keeps to itself what was encrypted with it, and counts who logs in.
struct Token {
    label: &'static str,
    says: Mutex<Says>,
    logins: AtomicUsize,
    kept: Mutex<Vec<KeyMaterial>>,
}

#[derive(Clone, Copy)]
enum Says {
    Welcome,
    Away,
    WrongPin,
    NoKey,
}

impl Token {
    fn new(label: &'static str) -> Arc<Self> {
        let (says, kept) = (Mutex::new(Says::Welcome), Mutex::default());
        Arc::new(Self { label, says, logins: AtomicUsize::new(0), kept })
    }

    fn says(&self, what: Says) {
        *self.says.lock() = what;
    }

    fn logins(&self) -> usize {
        self.logins.load(Ordering::SeqCst)
    }

    fn log_in(&self) -> Result<(), SealError> {
        let says = *self.says.lock();
        if matches!(says, Says::Away) {
            return Err(SealError::Token("it is away".to_owned()));
        }
        self.logins.fetch_add(1, Ordering::SeqCst);
        match says {
            Says::WrongPin => Err(SealError::PinRefused("the PIN is wrong".to_owned())),
            Says::NoKey => Err(SealError::TokenRefused("it has no such key".to_owned())),
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Seal for Token {
    fn kind(&self) -> SealKind {
        SealKind::Pkcs11
    }

    async fn begin(&self, entropy: &dyn Entropy) -> Result<(KeyMaterial, SealEntry), SealError> {
        let root = KeyMaterial::generate(32, entropy);
        let none = serde_json::from_value(json!({
            "format": 1, "generation": 1, "root": "00".repeat(16), "seals": [{ "kind": "file" }],
        }));
        let entry = self.wrap(SealKind::Pkcs11, (&root, &none.unwrap()), entropy).await?;
        Ok((root, entry))
    }

    async fn wrap(
        &self,
        _: SealKind,
        (root, _): (&KeyMaterial, &SealRecord),
        _: &dyn Entropy,
    ) -> Result<SealEntry, SealError> {
        self.log_in()?;
        let mut kept = self.kept.lock();
        kept.push(KeyMaterial::from_slice(root.expose()));
        let (token, serial) = (self.label, (kept.len() - 1).to_string());
        let entry = json!({
            "kind": "pkcs11", "token": token, "serial": serial, "key": "lastkey", "wrapped": "",
        });
        Ok(serde_json::from_value(entry).unwrap())
    }

    async fn unwrap(
        &self,
        entry: &SealEntry,
        _: Option<RootPrint>,
    ) -> Result<KeyMaterial, SealError> {
        self.log_in()?;
        let entry = serde_json::to_value(entry).unwrap();
        if entry["token"] != self.label {
            return Err(SealError::TokenRefused(format!("{} has no such key", self.label)));
        }
        let at: usize = entry["serial"].as_str().unwrap().parse().unwrap();
        Ok(KeyMaterial::from_slice(self.kept.lock()[at].expose()))
    }

    fn place(&self) -> Option<String> {
        Some(format!("token {}", self.label))
    }

    async fn settle(&self, _: &SealRecord) {}
}

/// A process that was told of this token, on any store.
async fn started_with(
    world: &World,
    store: Arc<dyn Store>,
    (token, first): (&Arc<Token>, SealKind),
) -> Instance {
    let file = FileSeal::new(world.directory.path().join("root.key"));
    let seals = Seals::new(file, Some(token.clone()), first);
    let instance = Instance::new(Parts { store, ..parts(world, Arc::new(seals)) });
    instance.start().await.unwrap();
    instance
}

async fn under(world: &World, token: &Arc<Token>) -> Instance {
    started_with(world, world.store.clone(), (token, SealKind::Pkcs11)).await
}

const TO_TOKEN: Order = Order::Migrate { to: SealKind::Pkcs11, splitting: None };

async fn to_token(
    instance: &Instance,
    token: Option<&Arc<Token>>,
    share: Option<&str>,
) -> Result<Outcome, OperatorError> {
    let token = token.map(|token| Arc::clone(token) as Arc<dyn Seal>);
    let share = share.map(|text| Share::parse(text).unwrap());
    instance.order(&caller(instance), TO_TOKEN, With { share, token }).await
}

/// Started anew while its token is away, and what it has to open once the token is back.
async fn started_without(world: &World, token: &Arc<Token>) -> (Instance, Vec<u8>) {
    let instance = under(world, token).await;
    let blob = encrypted(&instance.engine().unwrap()).await;
    instance.shutdown().await;
    token.says(Says::Away);
    (under(world, token).await, blob)
}

/// The token is away at the start, and comes back with another PIN.
async fn refuses_once(by_hand: bool) {
    let world = World::new();
    let token = Token::new("lab");
    let (instance, blob) = started_without(&world, &token).await;
    assert_eq!(instance.life(), Life::Sealed);
    let waiting = || instance.status().waiting.unwrap();
    assert!(waiting().contains("away"), "{}", waiting());
    let before = token.logins();
    token.says(Says::WrongPin);
    if by_hand {
        assert!(instance.unseal(None).await.is_err());
    }
    until("the token refuses", || waiting().contains("PIN")).await;
    // Long enough to be tried twice more.
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!(token.logins() - before, 1, "by hand: {by_hand}");
    assert!(waiting().contains("lastkey operator unseal"), "{}", waiting());
    token.says(Says::Away);
    assert!(instance.unseal(None).await.is_err());
    assert!(waiting().contains("away") && waiting().contains("lastkey operator unseal"));
    token.says(Says::Welcome);
    assert_eq!(instance.unseal(None).await.unwrap().waiting, None);
    assert_readable(&instance, &blob).await;
    instance.shutdown().await;
}

/// Each wrong PIN counts, and a few of them lock the token.
#[tokio::test]
async fn a_token_that_refuses_the_pin_is_not_asked_again() {
    tokio::join!(refuses_once(false), refuses_once(true));
}

/// One that comes back in stages has no key for a while.
#[tokio::test]
async fn a_token_that_lacks_something_is_asked_on() {
    let world = World::new();
    let token = Token::new("lab");
    let (instance, blob) = started_without(&world, &token).await;
    let waiting = || instance.status().waiting.unwrap_or_default();
    token.says(Says::NoKey);
    until("the token has no key", || waiting().contains("no such key")).await;
    token.says(Says::Welcome);
    until("it has", || instance.life() == Life::Unsealed).await;
    assert_readable(&instance, &blob).await;
    instance.shutdown().await;
}

/// A server on this token whose new shares wait to be entered.
async fn with_new_shares(world: &World, token: &Arc<Token>) -> (Instance, Vec<String>) {
    let instance = under(world, token).await;
    let Outcome::Shares(new) = order(&instance, TO_SHARES, None).await.unwrap() else {
        panic!("no shares");
    };
    (instance, texts(&new))
}

#[tokio::test]
async fn a_token_is_waited_for_while_new_shares_wait_to_be_entered() {
    let world = World::new();
    let token = Token::new("lab");
    let (instance, shares) = with_new_shares(&world, &token).await;
    let blob = encrypted(&instance.engine().unwrap()).await;
    instance.shutdown().await;
    token.says(Says::Away);
    let instance = under(&world, &token).await;
    assert_eq!(instance.life(), Life::Sealed);
    let waiting = instance.status().waiting.unwrap_or_default();
    assert!(waiting.contains("away") && waiting.contains("new shares"), "{waiting}");
    token.says(Says::Welcome);
    until("the token is back", || instance.life() == Life::Unsealed).await;
    assert_eq!(instance.status().waiting, None);
    assert!(instance.status().pending.is_some());
    assert_readable(&instance, &blob).await;
    instance.shutdown().await;
    // And the shares open while it is waited for.
    token.says(Says::Away);
    let instance = under(&world, &token).await;
    unseal(&instance, &shares).await;
    assert_eq!((instance.status().waiting, instance.status().pending), (None, None));
    assert_readable(&instance, &blob).await;
    instance.shutdown().await;
}

/// Keepers come one after the other, and each command asks the token first.
#[tokio::test]
async fn keepers_of_new_shares_lock_no_token() {
    let world = World::new();
    let token = Token::new("lab");
    let (instance, shares) = with_new_shares(&world, &token).await;
    instance.seal(&caller(&instance)).await.unwrap();
    token.says(Says::WrongPin);
    let tried = token.logins();
    let told = || instance.status().waiting.unwrap_or_default();
    for _ in 0..3 {
        let refused = instance.unseal(None).await.unwrap_err();
        assert_eq!(refused.code(), "Rejected.Seal");
        assert!(refused.to_string().contains("the PIN is wrong"), "{refused}");
        assert_eq!(token.logins() - tried, 1);
        assert!(told().contains("PIN") && told().contains("unseal --reset"), "{}", told());
    }
    // Once more when somebody wants that.
    instance.reset().await;
    assert!(instance.unseal(None).await.is_err());
    assert_eq!(token.logins() - tried, 2);
    instance.reset().await;
    token.says(Says::Welcome);
    assert_eq!(instance.unseal(None).await.unwrap().waiting, None);
    instance.shutdown().await;
    // And once at each start.
    token.says(Says::WrongPin);
    let tried = token.logins();
    let instance = under(&world, &token).await;
    assert!(instance.status().waiting.is_some_and(|why| why.contains("PIN")));
    assert!(instance.unseal(None).await.is_err());
    assert_eq!((instance.life(), token.logins() - tried), (Life::Sealed, 1));
    unseal(&instance, &shares).await;
    assert_eq!((instance.status().waiting, instance.status().pending), (None, None));
    instance.shutdown().await;
}

/// The store and the file of release 0.1.0, which has no record of a seal.
async fn of_the_first_release(world: &World) -> (Instance, Vec<u8>) {
    let instance = started(world, SealKind::File).await;
    let blob = encrypted(&instance.engine().unwrap()).await;
    instance.shutdown().await;
    world.store.commit(Transaction::new().delete("meta/seal")).await.unwrap();
    (started(world, SealKind::File).await, blob)
}

#[tokio::test]
async fn the_root_key_of_the_first_release_does_not_stay_in_its_file() {
    for steps in [&[TO_TOKEN][..], &[Order::RotateRoot, TO_TOKEN], &[TO_SHARES]] {
        let world = World::new();
        let (instance, blob) = of_the_first_release(&world).await;
        let file = world.directory.path().join("root.key");
        let token = Token::new("lab");
        for step in steps {
            if *step == TO_TOKEN {
                to_token(&instance, Some(&token), None).await.unwrap();
            } else if let Outcome::Shares(new) = order(&instance, *step, None).await.unwrap() {
                assert!(file.exists());
                ordered(&instance, Order::Confirm, &texts(&new)).await;
            }
        }
        assert!(!file.exists(), "{steps:?}");
        assert_readable(&instance, &blob).await;
        instance.shutdown().await;
    }
}

#[tokio::test]
async fn a_file_that_could_not_be_removed_goes_later_whatever_came_between() {
    let world = World::new();
    let (instance, blob) = of_the_first_release(&world).await;
    let file = world.directory.path().join("root.key");
    let mode = |mode| std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).unwrap();
    let token = Token::new("lab");
    // It cannot be told whose it is.
    mode(0o640);
    to_token(&instance, Some(&token), None).await.unwrap();
    for _ in 0..12 {
        order(&instance, Order::RotateRoot, None).await.unwrap();
    }
    assert!(file.exists());
    mode(0o600);
    instance.shutdown().await;
    let instance = under(&world, &token).await;
    assert!(!file.exists());
    assert_readable(&instance, &blob).await;
    // What is of another store stays.
    let other = World::new();
    started(&other, SealKind::File).await.shutdown().await;
    std::fs::copy(other.directory.path().join("root.key"), &file).unwrap();
    order(&instance, Order::RotateRoot, None).await.unwrap();
    instance.shutdown().await;
    under(&world, &token).await.shutdown().await;
    assert!(file.exists());
}

#[tokio::test]
async fn a_migration_that_fails_leaves_the_token_that_is_used() {
    let world = World::new();
    let (used, other) = (Token::new("used"), Token::new("other"));
    let instance = under(&world, &used).await;
    let blob = encrypted(&instance.engine().unwrap()).await;
    for says in [Says::WrongPin, Says::Away] {
        other.says(says);
        assert!(to_token(&instance, Some(&other), None).await.is_err());
        let sealed = instance.seal(&caller(&instance)).await.unwrap();
        assert_eq!(sealed.seal.unwrap().token.as_deref(), Some("used"));
        instance.unseal(None).await.unwrap();
        order(&instance, Order::RotateRoot, None).await.unwrap();
        assert_eq!(instance.status().seal.unwrap().token.as_deref(), Some("used"));
        assert_readable(&instance, &blob).await;
    }
    // And one that is carried out is for good.
    other.says(Says::Welcome);
    to_token(&instance, Some(&other), None).await.unwrap();
    used.says(Says::WrongPin);
    order(&instance, Order::RotateRoot, None).await.unwrap();
    instance.seal(&caller(&instance)).await.unwrap();
    instance.unseal(None).await.unwrap();
    assert_eq!(instance.status().seal.unwrap().token.as_deref(), Some("other"));
    assert_readable(&instance, &blob).await;
    instance.shutdown().await;
}

/// The store cannot tell whether the root key is under the other token.
#[tokio::test]
async fn the_token_that_is_used_is_the_one_that_the_store_tells_of_in_the_end() {
    for (made, sealed) in [(true, false), (false, false), (true, true), (false, true)] {
        let world = World::new();
        let store = Away::new(&world, made);
        let (used, other) = (Token::new("used"), Token::new("other"));
        let first = (&used, SealKind::Pkcs11);
        let instance = started_with(&world, store.clone(), first).await;
        let blob = encrypted(&instance.engine().unwrap()).await;
        store.arm();
        assert!(to_token(&instance, Some(&other), None).await.is_err());
        if sealed {
            // Its status cannot be told, and it is.
            let _ = instance.seal(&caller(&instance)).await;
            assert_eq!(instance.life(), Life::Sealed);
        }
        store.is_back();
        if sealed {
            instance.unseal(None).await.unwrap();
            assert_readable(&instance, &blob).await;
        }
        order(&instance, Order::RotateRoot, None).await.unwrap();
        let expected = if made { "other" } else { "used" };
        assert_eq!(instance.status().seal.unwrap().token.as_deref(), Some(expected));
        instance.seal(&caller(&instance)).await.unwrap();
        instance.unseal(None).await.unwrap();
        assert_readable(&instance, &blob).await;
        instance.shutdown().await;
    }
}

#[tokio::test]
async fn keepers_give_their_shares_for_the_token_that_the_first_has_named() {
    let world = World::new();
    let instance = started(&world, SealKind::Shamir).await;
    let shares = texts(&instance.init(3, 2).await.unwrap());
    unseal(&instance, &shares[..2]).await;
    let blob = encrypted(&instance.engine().unwrap()).await;
    let (wrong, token, late) = (Token::new("wrong"), Token::new("token"), Token::new("late"));
    wrong.says(Says::WrongPin);
    to_token(&instance, Some(&wrong), Some(&shares[0])).await.unwrap();
    assert!(to_token(&instance, None, Some(&shares[1])).await.is_err());
    // The failed one has left nothing, and no share is given for a token that nobody named.
    let none = to_token(&instance, None, Some(&shares[0])).await.unwrap_err();
    assert!(none.to_string().contains("--pkcs11-module"), "{none}");
    assert_eq!((none.code(), instance.status().order), ("Rejected.Seal", None));
    to_token(&instance, Some(&token), Some(&shares[2])).await.unwrap();
    assert_eq!(instance.status().target.as_deref(), Some("pkcs11, token token"));
    // Nobody's share is used for another token than they named.
    let other = to_token(&instance, Some(&late), Some(&shares[1])).await.unwrap_err();
    assert_eq!(other.code(), "Rejected.OtherOrder");
    assert!(other.to_string().contains("token token"), "{other}");
    to_token(&instance, Some(&token), Some(&shares[1])).await.unwrap();
    assert_eq!(instance.status().seal.unwrap().token.as_deref(), Some("token"));
    assert_readable(&instance, &blob).await;
    instance.shutdown().await;
}

/// The one that the server uses then, which the first keeper means.
#[tokio::test]
async fn who_names_no_token_gives_their_share_for_the_one_that_is_used() {
    let world = World::new();
    let (used, other) = (Token::new("used"), Token::new("other"));
    let instance = started_with(&world, world.store.clone(), (&used, SealKind::Shamir)).await;
    let shares = texts(&instance.init(3, 2).await.unwrap());
    unseal(&instance, &shares[..2]).await;
    let blob = encrypted(&instance.engine().unwrap()).await;
    to_token(&instance, None, Some(&shares[0])).await.unwrap();
    assert_eq!(instance.status().target.as_deref(), Some("pkcs11, token used"));
    let refused = to_token(&instance, Some(&other), Some(&shares[1])).await.unwrap_err();
    assert_eq!(refused.code(), "Rejected.OtherOrder");
    assert!(refused.to_string().contains("token used"), "{refused}");
    let to_file = Order::Migrate { to: SealKind::File, splitting: None };
    let refused = order(&instance, to_file, Some(&shares[1])).await.unwrap_err();
    assert!(refused.to_string().contains("migrate to pkcs11, token used"), "{refused}");
    to_token(&instance, None, Some(&shares[1])).await.unwrap();
    assert_eq!(instance.status().seal.unwrap().token.as_deref(), Some("used"));
    let query = lastkey_engine::audit::Query {
        action: Some("ManageSeal".to_owned()),
        limit: 100,
        ..Default::default()
    };
    let query = lastkey_engine::command::QueryAudit { query };
    let found = instance.engine().unwrap().execute(&caller(&instance), query).await.unwrap();
    let named: Vec<_> = found.records.iter().map(|record| record["token"].as_str()).collect();
    assert_eq!(named, [Some("token used"), Some("token other"), None, None]);
    assert_readable(&instance, &blob).await;
    instance.shutdown().await;
}
