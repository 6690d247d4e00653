//! Which checkpoints can be believed.

use lastkey_crypto::signing::PublicKey;

use super::{
    Head,
    checkpoint::{self, Checkpoint, CheckpointKind, LogId, Statement},
    remembered::Known,
    verify::{Mark, Problem},
    walk::MAX_PROBLEMS,
};

/// What a file of checkpoints says, as far as it can be believed.
#[derive(Debug, Default)]
pub(super) struct Examined {
    /// Heads that must lie on the chain.
    pub(super) marks: Vec<Mark>,
    /// Statements that everything up to a record was deleted, the newest last.
    pub(super) deleted: Vec<Head>,
    /// All that can be believed.
    pub(super) statements: Vec<Statement>,
    /// The number in the first line, if that can be believed.
    pub(super) first: Option<u64>,
    /// Of the known checkpoints: the numbers that there are, and the hashes of these lines.
    pub(super) known: Vec<(u64, [u8; 32])>,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<String>,
}

/// How strictly a file is looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trust<'a> {
    /// Whose signatures count.
    pub(super) keys: &'a [PublicKey],
    /// The log; `None` takes the first that a signature vouches for.
    pub(super) log: Option<LogId>,
    /// Whether another key's checkpoint is only worth a warning: the server knows the one that it
    /// has now, and not those before.
    pub(super) tolerates_other_keys: bool,
    /// Checkpoints that are looked for.
    pub(super) known: &'a [Known],
    pub(super) threads: usize,
}

/// Reads a file of checkpoints. One that is forged, damaged or taken out of the middle shows.
pub(super) fn examine(name: &str, bytes: &[u8], trust: Trust<'_>) -> Examined {
    let lines: Vec<&[u8]> = checkpoint::lines(bytes).collect();
    let judged = judge(&lines, trust);
    let mut examined = Examined::default();
    let mut log = trust.log;
    let mut before: Option<(u64, [u8; 32])> = None;
    let mut foreign = 0u64;
    let is_known = |number| trust.known.iter().any(|known| known.number == number);
    // The deletion that goes furthest of those that only another key vouches for.
    let mut stated: Option<(u64, String)> = None;
    for (index, (line, verdict)) in lines.iter().zip(judged).enumerate() {
        let mut report = |seq: u64, kind, what: String| {
            if examined.problems.len() < MAX_PROBLEMS {
                let (segment, line) = (name.to_owned(), index as u64 + 1);
                examined.problems.push(Problem { segment, line, seq, kind, what });
            }
        };
        let place = index + 1;
        let statement = match verdict {
            Verdict::Garbage => {
                report(0, "changed", format!("line {place} is no checkpoint"));
                before = None;
                continue;
            }
            Verdict::Forged(found) => {
                let (seq, number) = (found.statement.head.seq, found.statement.number);
                let what = format!("the signature of checkpoint {number} does not hold");
                report(seq, "unauthenticated", what);
                before = None;
                continue;
            }
            Verdict::Foreign(found) => {
                let (seq, number) = (found.statement.head.seq, found.statement.number);
                if trust.tolerates_other_keys {
                    foreign += 1;
                    if found.statement.kind == CheckpointKind::Retention {
                        stated = stated.max(Some((seq, found.key)));
                    }
                } else {
                    let what =
                        format!("checkpoint {number} is signed by another key, {}", found.key);
                    report(seq, "unauthenticated", what);
                }
                let link = checkpoint::link(line);
                if is_known(number) {
                    examined.known.push((number, link));
                }
                before = Some((number, link));
                continue;
            }
            Verdict::Good(statement) => statement,
        };
        let (seq, number) = (statement.head.seq, statement.number);
        if *log.get_or_insert(statement.log) != statement.log {
            let what = format!("checkpoint {number} is about another log");
            report(seq, "unauthenticated", what);
            continue;
        }
        if before.is_some_and(|(last, link)| {
            last.checked_add(1) != Some(number) || statement.prev != link
        }) || (index == 0 && number == 1 && statement.prev != [0; 32])
        {
            let what = format!("a checkpoint before number {number} is missing or was changed");
            report(seq, "missing", what);
        }
        let link = checkpoint::link(line);
        before = Some((number, link));
        if index == 0 {
            examined.first = Some(number);
        }
        if is_known(number) {
            examined.known.push((number, link));
        }
        examined.marks.push(Mark { head: statement.head, checkpoint: Some(number) });
        if statement.kind == CheckpointKind::Retention {
            examined.deleted.push(statement.head);
        }
        examined.statements.push(statement);
    }
    if foreign > 0 {
        examined.warnings.push(format!("{foreign} checkpoints are signed by another key"));
    }
    let own = examined.deleted.iter().map(|head| head.seq).max().unwrap_or(0);
    if let Some((seq, key)) = stated.filter(|(seq, _)| *seq > own) {
        examined.warnings.push(format!(
            "another key, {key}, states that records 1 to {seq} were deleted, and this server \
             cannot tell whose it is: if they are missing, verify with its public half as well \
             (`lastkey audit verify --offline DIR --public-key OLD --public-key NEW`)"
        ));
    }
    examined
}

enum Verdict {
    Good(Statement),
    Forged(Checkpoint),
    Foreign(Checkpoint),
    Garbage,
}

/// Checks the signatures, in parts of the file at once.
fn judge(lines: &[&[u8]], trust: Trust<'_>) -> Vec<Verdict> {
    let part = lines.len().div_ceil(trust.threads.max(1)).max(64);
    std::thread::scope(|scope| {
        let workers: Vec<_> = lines
            .chunks(part)
            .map(|part| {
                scope.spawn(move || {
                    part.iter().map(|line| judge_line(line, trust.keys)).collect::<Vec<_>>()
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_default()).collect()
    })
}

fn judge_line(line: &[u8], keys: &[PublicKey]) -> Verdict {
    let Some(found) = checkpoint::read(line) else { return Verdict::Garbage };
    let Some(key) = keys.iter().find(|key| key.id() == found.key) else {
        return Verdict::Foreign(found);
    };
    if found.is_signed_by(*key) { Verdict::Good(found.statement) } else { Verdict::Forged(found) }
}

#[cfg(test)]
mod tests {
    use lastkey_crypto::{KeyMaterial, mac, signing::SigningKey};

    use super::*;
    use crate::Timestamp;

    /// Anybody can write a checkpoint under a key of their own, with whatever number.
    #[test]
    fn a_number_that_nothing_follows() {
        let key = |seed| SigningKey::from_seed(KeyMaterial::from_slice(&[seed; 32])).unwrap();
        let line = |number, prev, key: &SigningKey| {
            let head = Head { seq: 1, hash: [3; 32] };
            let (kind, time) = (CheckpointKind::Time, Timestamp::from_millis(0));
            Statement { log: [1; 16], number, prev, kind, head, time }.sign(key).to_line()
        };
        let foreign = line(u64::MAX, [0; 32], &key(1));
        let ours = line(0, checkpoint::link(foreign.as_bytes()), &key(2));
        let trust = Trust {
            keys: &[key(2).public()],
            log: None,
            tolerates_other_keys: true,
            known: &[],
            threads: 1,
        };
        let examined = examine("file", format!("{foreign}\n{ours}\n").as_bytes(), trust);
        assert_eq!(examined.statements.len(), 1);
        let problems: Vec<_> = examined.problems.iter().map(|found| found.kind).collect();
        assert_eq!(problems, ["missing"], "0 does not follow the highest number");
    }

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed(KeyMaterial::from_slice(&[seed; 32])).unwrap()
    }

    /// A line with this number behind a line with that link.
    fn line(number: u64, prev: [u8; 32], seed: u8) -> String {
        let (kind, time) = (CheckpointKind::Time, Timestamp::from_millis(0));
        let head = Head { seq: number, hash: [3; 32] };
        Statement { log: [1; 16], number, prev, kind, head, time }.sign(&key(seed)).to_line()
    }

    fn found(lines: &[String], tolerates_other_keys: bool) -> Examined {
        let keys = [key(2).public()];
        let trust = Trust { keys: &keys, log: None, tolerates_other_keys, known: &[], threads: 2 };
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        examine("file", text.as_bytes(), trust)
    }

    fn link(line: &str) -> [u8; 32] {
        checkpoint::link(line.as_bytes())
    }

    #[test]
    fn each_checkpoint_names_the_one_before_by_its_hash() {
        let first = line(1, [0; 32], 2);
        let second = line(2, mac::sha256(&[first.as_bytes()]), 2);
        let whole = found(&[first.clone(), second.clone()], false);
        assert_eq!((whole.problems, whole.statements.len()), (vec![], 2));
        // Another signed one with the right number, but behind something else.
        let other = found(&[first, line(2, [7; 32], 2)], false);
        assert_eq!((other.problems[0].kind, other.problems[0].line), ("missing", 2));
        // The first of all is behind nothing; a later one may be the first that is left.
        let made_up = found(&[line(1, [7; 32], 2)], false);
        assert_eq!((made_up.problems[0].kind, made_up.problems[0].line), ("missing", 1));
        assert_eq!(found(std::slice::from_ref(&second), false).problems, []);
        assert_eq!(found(&[second.clone(), line(3, link(&second), 2)], false).problems, []);
    }

    #[test]
    fn problems_name_their_line_and_are_not_without_end() {
        let first = line(1, [0; 32], 2);
        let lines = [first.clone(), "no checkpoint".to_owned(), line(2, link(&first), 2)];
        let one = found(&lines, false);
        assert_eq!(one.problems.len(), 1, "{:?}", one.problems);
        assert_eq!((one.problems[0].line, one.problems[0].kind), (2, "changed"));
        assert!(one.problems[0].what.contains("line 2 "), "{:?}", one.problems);
        let many = found(&vec!["no checkpoint".to_owned(); 3 * MAX_PROBLEMS], false);
        assert_eq!(many.problems.len(), MAX_PROBLEMS);
    }

    /// Whoever has the disk can replace the key and state anything: it excuses nothing, but it is
    /// said what would tell.
    #[test]
    fn a_deletion_that_another_key_states_is_named_and_not_believed() {
        let stated = |seed, seq| {
            let (kind, time) = (CheckpointKind::Retention, Timestamp::from_millis(0));
            let head = Head { seq, hash: [3; 32] };
            let statement = Statement { log: [1; 16], number: 1, prev: [0; 32], kind, head, time };
            statement.sign(&key(seed)).to_line()
        };
        let by_another = stated(1, 70);
        let ours = line(2, link(&by_another), 2);
        let live = found(&[by_another, ours], true);
        assert_eq!((live.problems, live.deleted), (vec![], vec![]));
        let said = &live.warnings[1];
        assert!(
            said.contains("records 1 to 70 were deleted") && said.contains("--offline"),
            "{said}"
        );
        // One of our own that goes further says it all.
        let by_another = stated(1, 70);
        let mut own = Statement {
            number: 2,
            ..checkpoint::read(stated(2, 90).as_bytes()).unwrap().statement
        };
        own.prev = link(&by_another);
        let live = found(&[by_another, own.sign(&key(2)).to_line()], true);
        assert_eq!((live.deleted.len(), live.warnings.len()), (1, 1));
    }

    #[test]
    fn another_key_is_a_problem_or_worth_a_warning_with_their_number() {
        let first = line(1, [0; 32], 1);
        let second = line(2, link(&first), 1);
        let ours = line(3, link(&second), 2);
        let lines = [first, second, ours.clone()];
        let strict = found(&lines, false);
        let kinds: Vec<_> = strict.problems.iter().map(|found| found.kind).collect();
        assert_eq!(kinds, ["unauthenticated", "unauthenticated"]);
        let live = found(&lines, true);
        assert_eq!((live.problems, live.statements.len()), (vec![], 1));
        assert_eq!(live.warnings, ["2 checkpoints are signed by another key"]);
        assert_eq!(found(&[ours], true).warnings, Vec::<String>::new());
    }
}
