//! What callers ask for, drawn from the seed and from what they were told before.

use std::collections::BTreeMap;

use lastkey_crypto::{EncryptionContext, KeyId};
use lastkey_engine::{AliasName, ClusterName, KeyRef, RotationPolicy};

use crate::{
    Random,
    model::Model,
    op::{Mutation, Op},
};

/// At most so many keys in one history.
const KEYS: usize = 10;
/// At most so many names for them.
const ALIASES: usize = 6;

/// Draws commands.
#[derive(Debug)]
pub struct Workload {
    random: Random,
    /// How long names in encryption contexts are: long ones fill the log.
    pub fat: bool,
    /// Records may still be sealed again since a new keyring.
    resealing: bool,
}

impl Workload {
    /// From these numbers.
    pub fn new(random: Random) -> Self {
        Self { random, fat: false, resealing: false }
    }

    /// A command that may be issued now.
    pub fn next(&mut self, model: &Model) -> Op {
        loop {
            let op = self.any(model).unwrap_or(Op::Keys { page: 1 });
            if model.may(&op) {
                return op;
            }
        }
    }

    fn any(&mut self, model: &Model) -> Option<Op> {
        if model.keys.is_empty() || (model.keys.len() < KEYS && self.random.percent(6)) {
            return Some(self.create());
        }
        // The next rotation comes into the work of the one before as often as not.
        if self.resealing && self.random.percent(20) {
            self.resealing = self.random.percent(80);
            return Some(Op::RotateKeyring);
        }
        Some(match self.random.below(100) {
            0..24 => Op::Mutate { key: self.key(model)?, by: self.mutation() },
            24..32 => self.alias(model)?,
            32..52 => {
                let (key, context) = (self.key_ref(model)?, self.context());
                Op::Encrypt { key, plaintext: self.bytes(200), context }
            }
            52..60 => {
                let (key, length) = (self.key_ref(model)?, 1 + self.random.below(64));
                let (context, shown) = (self.context(), self.random.percent(50));
                Op::DataKey { key, length, context, shown }
            }
            60..74 => self.decrypt(model)?,
            74..77 => {
                let number = self.random.below(model.ciphertexts.len());
                let known = model.ciphertexts.get(number)?;
                let (blob, context) = (known.blob.clone(), known.context.clone());
                Op::ReEncrypt { number, blob, context, key: self.key(model)? }
            }
            77..82 => Op::Describe { key: self.key(model)? },
            82..84 => Op::Keys { page: 1 },
            84..85 => Op::Aliases { page: 1 },
            85 => Op::Verify,
            86 => Op::RotateRoot,
            87 => {
                self.resealing = true;
                Op::RotateKeyring
            }
            _ => self.plugin(model)?,
        })
    }

    fn plugin(&mut self, model: &Model) -> Option<Op> {
        let Some(cluster) = &model.cluster else {
            let keys: Vec<KeyId> = model.keys.keys().copied().take(3).collect();
            let fingerprint = hex::encode(self.bytes(32));
            let name = ClusterName::parse("cluster").ok()?;
            return Some(Op::AddCluster { name, keys, fingerprint });
        };
        let key = *self.random.pick(&cluster.keys)?;
        let cluster = cluster.id;
        Some(match self.random.below(3) {
            0 => Op::PluginStatus { cluster, key },
            1 => Op::PluginEncrypt { cluster, key, plaintext: self.bytes(32) },
            _ => {
                let number = self.random.below(model.sealed.len());
                let known = model.sealed.get(number)?;
                let (key, sealed) = (known.key, known.sealed.clone());
                Op::PluginDecrypt { number, cluster, key, sealed }
            }
        })
    }

    fn create(&mut self) -> Op {
        let description = format!("key {:016x}", self.random.next());
        let alias = if self.random.percent(40) { self.name() } else { None };
        let tags = if self.random.percent(40) { self.tags() } else { BTreeMap::new() };
        Op::Create { description, alias, tags }
    }

    fn alias(&mut self, model: &Model) -> Option<Op> {
        let (name, key) = (self.name()?, self.key(model)?);
        Some(match self.random.below(3) {
            0 => Op::CreateAlias { name, key },
            1 => Op::UpdateAlias { name, key },
            _ => Op::DeleteAlias { name },
        })
    }

    fn decrypt(&mut self, model: &Model) -> Option<Op> {
        let number = self.random.below(model.ciphertexts.len());
        let known = model.ciphertexts.get(number)?;
        let (blob, context) = (known.blob.clone(), known.context.clone());
        Some(Op::Decrypt { number, blob, context })
    }

    fn mutation(&mut self) -> Mutation {
        match self.random.below(20) {
            0..6 => Mutation::Rotate,
            6 => Mutation::Disable,
            7..10 => Mutation::Enable,
            10 | 11 => Mutation::Describe(format!("key {:016x}", self.random.next())),
            12 | 13 => Mutation::Tag(self.tags()),
            14 => Mutation::Untag(self.tags().into_keys().collect()),
            15 => Mutation::Schedule(7 + u16::try_from(self.random.below(30)).unwrap_or(0)),
            16 | 17 => Mutation::Cancel,
            18 => Mutation::Protect(self.random.percent(30)),
            _ => {
                let interval_seconds = RotationPolicy::MIN.as_secs();
                Mutation::Policy(RotationPolicy {
                    enabled: self.random.percent(70),
                    interval_seconds,
                })
            }
        }
    }

    fn key(&mut self, model: &Model) -> Option<KeyId> {
        let keys: Vec<KeyId> = model.keys.keys().copied().collect();
        self.random.pick(&keys).copied()
    }

    fn key_ref(&mut self, model: &Model) -> Option<KeyRef> {
        if self.random.percent(20) {
            return self.name().map(KeyRef::Alias);
        }
        self.key(model).map(KeyRef::Id)
    }

    fn name(&mut self) -> Option<AliasName> {
        AliasName::parse(&format!("alias/name-{}", self.random.below(ALIASES))).ok()
    }

    fn tags(&mut self) -> BTreeMap<String, String> {
        let count = 1 + self.random.below(3);
        let tag = |_| {
            let name = format!("tag-{}", self.random.below(5));
            (name, format!("{:x}", self.random.next()))
        };
        (0..count).map(tag).collect()
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let count = 1 + self.random.below(most);
        (0..count).map(|_| self.random.next() as u8).collect()
    }

    fn context(&mut self) -> EncryptionContext {
        let mut pairs = Vec::new();
        if self.fat {
            pairs.push((format!("{}-{:x}", "x".repeat(7_000), self.random.next()), "y".to_owned()));
        } else if self.random.percent(50) {
            pairs.push((
                format!("name-{}", self.random.below(3)),
                format!("{}", self.random.next()),
            ));
        }
        EncryptionContext::from_pairs(pairs).unwrap_or_default()
    }
}
