//! Which records one creation of a key writes: counted at lastkey's own store, for the floor to
//! write as many of the same size under the same kind of paths.

use std::{collections::BTreeMap, str::FromStr};

use lastkey_store::Operation;
use serde::{Deserialize, Serialize};
use uuid::{Uuid, Version};

use crate::error::Error;

/// The records of one creation.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Shape(Vec<Put>);

/// Writes of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Put {
    /// The path up to its name.
    prefix: String,
    name: Name,
    /// How many of them one creation writes.
    count: usize,
    /// Bytes of each value.
    bytes: usize,
    /// Whether it is deleted again.
    passing: bool,
}

/// How the end of a path is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Name {
    /// A UUID that begins with the time.
    Ordered,
    /// A random UUID.
    Random,
    /// One of 256.
    Shard,
}

/// The records of one creation, made up.
pub(crate) struct Records {
    pub(crate) puts: Vec<(String, Vec<u8>)>,
    /// The paths that are deleted again.
    pub(crate) passing: Vec<String>,
}

impl Shape {
    /// What these operations were, divided by the number of creations that they belong to.
    /// Paths of which fewer than one in two creations writes any are left out.
    pub(crate) fn of<'a>(
        operations: impl Iterator<Item = &'a Operation>,
        creations: usize,
    ) -> Self {
        let mut found: BTreeMap<(&str, Name), (usize, usize)> = BTreeMap::new();
        let mut deleted: BTreeMap<&str, usize> = BTreeMap::new();
        for operation in operations {
            match operation {
                Operation::Put { path, value } => {
                    let Some((prefix, name)) = split(path) else { continue };
                    let (count, bytes) = found.entry((prefix, name)).or_default();
                    *count += 1;
                    *bytes += value.len();
                }
                Operation::Delete { path } => {
                    if let Some((prefix, _)) = split(path) {
                        *deleted.entry(prefix).or_default() += 1;
                    }
                }
            }
        }
        let puts = found.into_iter().map(|((prefix, name), (count, bytes))| Put {
            prefix: prefix.to_owned(),
            name,
            count: (count + creations / 2) / creations.max(1),
            bytes: bytes / count,
            passing: deleted.contains_key(prefix),
        });
        Self(puts.filter(|put| put.count > 0).collect())
    }

    /// The key's own two records alone: no audit parcel, no heads.
    pub(crate) fn pair(&self) -> Self {
        let own = |put: &&Put| put.name == Name::Ordered && !put.passing;
        Self(self.0.iter().filter(own).cloned().collect())
    }

    /// One more creation's records.
    pub(crate) fn records(&self) -> Records {
        let mut records = Records { puts: Vec::new(), passing: Vec::new() };
        for put in &self.0 {
            for _ in 0..put.count {
                let path = format!("{}{}", put.prefix, put.name.draw());
                if put.passing {
                    records.passing.push(path.clone());
                }
                records.puts.push((path, vec![b'v'; put.bytes]));
            }
        }
        records
    }

    /// For people: `key 912, version 117, …` in bytes.
    pub(crate) fn describe(&self) -> String {
        let one = |put: &Put| {
            let name = put.prefix.trim_end_matches('/');
            let times = if put.count == 1 { String::new() } else { format!("{} × ", put.count) };
            format!("{times}{name} {} B", put.bytes)
        };
        self.0.iter().map(one).collect::<Vec<_>>().join(", ")
    }
}

impl FromStr for Shape {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        serde_json::from_str(text)
            .map_err(|source| Error::Json { path: "the records' shape".into(), source })
    }
}

impl Name {
    fn draw(self) -> String {
        let random = Uuid::new_v4();
        match self {
            Self::Ordered => Uuid::now_v7().to_string(),
            Self::Random => random.to_string(),
            Self::Shard => hex::encode(&random.as_bytes()[..1]),
        }
    }
}

fn split(path: &str) -> Option<(&str, Name)> {
    let at = path.rfind('/')? + 1;
    let (prefix, name) = path.split_at(at);
    let is_shard = name.len() == 2 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    let name = match Uuid::parse_str(name) {
        Ok(uuid) if uuid.get_version() == Some(Version::SortRand) => Name::Ordered,
        Ok(_) => Name::Random,
        Err(_) if is_shard => Name::Shard,
        Err(_) => return None,
    };
    Some((prefix, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(path: String, bytes: usize) -> Operation {
        Operation::Put { path, value: vec![0; bytes] }
    }

    #[test]
    fn what_was_written_is_written_again() {
        let mut operations = Vec::new();
        for number in 0..4 {
            let parcel = format!("outbox/{}", Uuid::new_v4());
            operations.push(put(parcel.clone(), 300));
            operations.push(put(format!("key/{}", Uuid::now_v7()), 900 + number));
            operations.push(put(format!("version/{}", Uuid::now_v7()), 100));
            operations.push(put(format!("head/{number:02x}"), 90));
            operations.push(put(format!("head/a{number:x}"), 90));
            operations.push(Operation::Delete { path: parcel });
        }
        operations.push(put("audit/head".into(), 80));
        let shape = Shape::of(operations.iter(), 4);
        let records = shape.records();
        let sizes: Vec<(&str, usize)> = records
            .puts
            .iter()
            .map(|(path, value)| (path.split('/').next().unwrap(), value.len()))
            .collect();
        assert_eq!(
            sizes,
            [("head", 90), ("head", 90), ("key", 901), ("outbox", 300), ("version", 100)]
        );
        assert_eq!(records.passing.len(), 1);
        assert!(records.passing[0].starts_with("outbox/"));
        assert_eq!(shape.pair().describe(), "key 901 B, version 100 B");
        assert_eq!(shape.describe(), "2 × head 90 B, key 901 B, outbox 300 B, version 100 B");
        let text = serde_json::to_string(&shape).unwrap();
        assert_eq!(text.parse::<Shape>().unwrap().describe(), shape.describe());
    }
}
