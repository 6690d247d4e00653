//! `lastkey operator …`: the seal.
//!
//! Shares are secrets. They are printed once, to standard output alone, and read without echo from
//! the terminal, or a line of standard input where that is none; never from an argument or the
//! environment.

use std::{
    io::{self, IsTerminal as _, Read as _, Write as _},
    process, thread,
};

use lastkey_client::{Client, Config, Error};
use lastkey_crypto::share::Share;
use parking_lot::Mutex;
use rustix::{
    process::{Signal, getpid, kill_process},
    termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr},
};
use serde_json::{Map, Value, json};
use tokio::signal::unix::{SignalKind, signal};
use zeroize::Zeroizing;

use crate::{
    cli::{
        Connect, GuardOptions, MaybeSplitting, OperatorAction, RotateWhat, SealChoice, Splitting,
        Switch, TokenOptions,
    },
    connect::{self, block_on},
    output::{Column, Exit, Failure, Output, fields, table},
};

/// Longer than any share.
const MAX_LINE: usize = 1024;

pub(crate) fn run(
    connect: &Connect,
    action: OperatorAction,
    output: &Output,
) -> Result<(), Failure> {
    let client = client(connect, &action)?;
    let call = Call { client: &client, output };
    match action {
        OperatorAction::Status => call.status(),
        OperatorAction::Guard(options) => call.guard(&options),
        OperatorAction::Init(Splitting { shares, threshold }) => {
            let body = json!({ "shares": shares, "threshold": threshold });
            let made =
                block_on(async { client.operator("init", &body).await.map_err(unanswered) })?;
            let again = "nothing is lost with them yet: stop the server, move its data directory \
                         away, start it again with --seal shamir, and run this again";
            call.show_shares(&made, "lastkey operator unseal", again)
        }
        OperatorAction::Unseal { reset: true } => {
            let status = call.post("unseal", &json!({ "reset": true }))?;
            call.progress(&status);
            Ok(())
        }
        OperatorAction::Unseal { reset: false } => call.unseal(),
        OperatorAction::Seal => {
            let status = call.post("seal", &json!({}))?;
            call.progress(&status);
            Ok(())
        }
        OperatorAction::Rekey(splitting) => call.order("rekey", body(splitting)),
        OperatorAction::Confirm => call.order("confirm", Map::new()),
        OperatorAction::Cancel => {
            let before = call.get_status()?;
            let status = call.post("cancel", &json!({}))?;
            output.object(&status, || cancelled(&before, &status));
            Ok(())
        }
        OperatorAction::Migrate { to, splitting, token } => call.migrate(to, splitting, token),
        OperatorAction::Rotate { what } => {
            let what = match what {
                RotateWhat::Root => "root",
                RotateWhat::Keyring => "keyring",
            };
            let mut body = Map::new();
            body.insert("what".to_owned(), json!(what));
            call.order("rotate", body)
        }
        OperatorAction::AcceptRestore { reason } => {
            let status = call.post("accept-restore", &json!({ "reason": reason }))?;
            call.progress(&status);
            Ok(())
        }
    }
}

/// A client: as everywhere, but an admin socket that is at hand goes before credentials for what
/// is taken there alone, what is better entered there, and what is asked of a server that does not
/// serve; and for all, where there are no credentials yet.
fn client(connect: &Connect, action: &OperatorAction) -> Result<Client, Failure> {
    use OperatorAction::{AcceptRestore, Init, Status, Unseal};
    let here = matches!(action, Init(_) | Unseal { .. } | AcceptRestore { .. } | Status);
    let Some(socket) = connect::socket_at_hand(connect) else { return connect::client(connect) };
    let local = || Ok(Client::new(Config::admin(socket))?);
    if here {
        return local();
    }
    match connect::client(connect) {
        Err(failure) if failure.exit() == Exit::Usage => local(),
        client => client,
    }
}

struct Call<'a> {
    client: &'a Client,
    output: &'a Output,
}

impl Call<'_> {
    fn get_status(&self) -> Result<Value, Failure> {
        block_on(async { Ok(self.client.get("/v1/operator/status", &[]).await?) })
    }

    fn post(&self, route: &str, body: &Value) -> Result<Value, Failure> {
        block_on(async { Ok(self.client.operator(route, body).await?) })
    }

    fn status(&self) -> Result<(), Failure> {
        let status = self.get_status()?;
        self.output.object(&status, || fields(&status));
        Ok(())
    }

    /// Shows the guard's setting, after it was set if that is wanted.
    fn guard(&self, options: &GuardOptions) -> Result<(), Failure> {
        let guard = block_on(async {
            if let Some(switch) = options.second_person {
                let reason = options.reason.as_deref().unwrap_or_default();
                self.client.set_second_person(switch == Switch::On, reason).await?;
            }
            Ok(self.client.guard().await?)
        })?;
        self.output.object(&guard, || {
            let waiting = guard["requests"].as_array().map_or(0, Vec::len);
            match guard["second_person"]["on"] == true {
                true => format!(
                    "an override needs a second person; {waiting} wait for one (`lastkey key \
                     overrides`)"
                ),
                false => "an override needs one person".to_owned(),
            }
        });
        Ok(())
    }

    fn unseal(&self) -> Result<(), Failure> {
        let status = self.get_status()?;
        let by_share = || self.post("unseal", &json!({ "share": &*read_share(&status)? }));
        let sealed = status["state"] == "sealed";
        let answer = if sealed && takes_shares(&status) {
            by_share()?
        } else {
            match self.post("unseal", &json!({})) {
                // New shares, which were never entered, unseal too.
                Err(failure) if sealed && status["pending"]["kind"] == "shamir" => {
                    self.output.hint(&format!("{failure}; the new shares unseal the server, too"));
                    match by_share() {
                        // Who gives none wants to know of the seal.
                        Err(none) if none.exit() == Exit::Usage => {
                            return Err(failure.and("the new shares unseal the server, too"));
                        }
                        answer => answer?,
                    }
                }
                answer => answer?,
            }
        };
        self.progress(&answer);
        Ok(())
    }

    fn migrate(
        &self,
        to: SealChoice,
        splitting: MaybeSplitting,
        token: TokenOptions,
    ) -> Result<(), Failure> {
        let to = match to {
            SealChoice::File => "file",
            SealChoice::Shamir => "shamir",
            SealChoice::Pkcs11 => "pkcs11",
        };
        let mut body = body(splitting);
        body.insert("to".to_owned(), json!(to));
        let TokenOptions { pkcs11_module, pkcs11_token, pkcs11_key, pkcs11_pin_file } = token;
        if let (Some(module), Some(token), Some(pin_file)) =
            (pkcs11_module, pkcs11_token, pkcs11_pin_file)
        {
            // The server has another working directory.
            let absolute = |path| std::path::absolute(path).map_err(Failure::failed);
            let token = json!({
                "module": absolute(module)?, "token": token, "key": pkcs11_key,
                "pin_file": absolute(pin_file)?,
            });
            body.insert("token".to_owned(), token);
            self.output.hint(
                "give the server the same --pkcs11 options at its next start: it keeps no paths",
            );
        }
        self.order("migrate", body)
    }

    /// Sends an order, with a share where the seal takes shares for it.
    fn order(&self, route: &str, mut body: Map<String, Value>) -> Result<(), Failure> {
        let status = self.get_status()?;
        if needs_share(route, &body, &status) {
            if let Some(under_way) = under_way(&status) {
                self.output.hint(&format!("shares are being entered for: {under_way}"));
            }
            body.insert("share".to_owned(), json!(&*read_share(&status)?));
        }
        let answer = self.post(route, &Value::Object(body))?;
        if let Some(key) = answer["keyring_key"].as_u64() {
            self.output.object(&answer, || {
                format!(
                    "keyring key {key} encrypts from now on; what others encrypted is encrypted \
                     again in the background"
                )
            });
        } else if answer["shares"].is_array() {
            let again = "the old seal goes on: drop them with `lastkey operator cancel`, and have \
                         others made";
            return self.show_shares(&answer, "lastkey operator confirm", again);
        } else {
            self.progress(&answer);
        }
        Ok(())
    }

    /// How far it is, and what comes next.
    fn progress(&self, status: &Value) {
        self.output.object(status, || sentence(status));
    }

    /// The new shares, this once. A reader who went away is a failure here: nobody else has them.
    fn show_shares(&self, made: &Value, next: &str, again: &str) -> Result<(), Failure> {
        let items = made["shares"].as_array().map(Vec::as_slice).unwrap_or_default();
        let threshold = &made["seal"]["threshold"];
        let text = Zeroizing::new(match self.output.is_json() {
            true => made.to_string(),
            false => table(items, &[Column("Share", "index"), Column("", "share")]),
        });
        let mut out = io::stdout().lock();
        writeln!(out, "{}", *text).and_then(|()| out.flush()).map_err(|error| {
            Failure::failed(format_args!(
                "the shares were made, and could not be written to standard output ({error}): \
                 those that are not there are lost; {again}"
            ))
        })?;
        self.output.hint(&format!(
            "These are shown this once. Give each to another keeper; any {threshold} of them \
             unseal the server, and without them nobody ever will.\n\
             Next, {threshold} of the keepers, each with a share: {next}"
        ));
        Ok(())
    }
}

/// The server may have made shares whose only copy was in the answer that never came.
fn unanswered(error: Error) -> Failure {
    match error {
        Error::Broken { .. } | Error::Timeout { .. } => Failure::from(error).and(
            "the root key may have been made, with shares that nobody has: run this again, which \
             says what to do then",
        ),
        _ => error.into(),
    }
}

fn body(splitting: MaybeSplitting) -> Map<String, Value> {
    let mut body = Map::new();
    if let MaybeSplitting { shares: Some(shares), threshold: Some(threshold) } = splitting {
        body.insert("shares".to_owned(), json!(shares));
        body.insert("threshold".to_owned(), json!(threshold));
    }
    body
}

/// Whether a share is what unseals. Any other seal is asked first: new shares, which were never
/// entered, help where it fails. Once one of them was entered it is not asked again by each further
/// keeper: a wrong PIN counts.
fn takes_shares(status: &Value) -> bool {
    status["seal"]["kind"] == "shamir"
        || (status["pending"]["kind"] == "shamir"
            && status["progress"]["entered"].as_u64().is_some_and(|entered| entered > 0))
}

/// Whether the server will ask for a share.
fn needs_share(route: &str, body: &Map<String, Value>, status: &Value) -> bool {
    let keyring = body.get("what").is_some_and(|what| what == "keyring");
    match route {
        "confirm" => status["pending"]["kind"] == "shamir",
        _ => status["seal"]["kind"] == "shamir" && !keyring,
    }
}

/// What shares are being entered for, other than to unseal.
fn under_way(status: &Value) -> Option<String> {
    let order = status["order"].as_str().filter(|order| *order != "unseal")?;
    let target = status["target"].as_str();
    Some(target.map_or_else(|| order.to_owned(), |target| format!("{order} to {target}")))
}

/// What `cancel` has dropped, and what it has not.
fn cancelled(before: &Value, after: &Value) -> String {
    let pending = after["pending"].is_object();
    let dropped = match under_way(before) {
        _ if before["pending"].is_object() && !pending => {
            "the new shares are dropped: they are worthless, and the old seal goes on".to_owned()
        }
        Some(order) => format!("what was entered for {order} is dropped"),
        None => "nothing was being entered".to_owned(),
    };
    match pending {
        true => format!(
            "{dropped}; the new shares wait on (`lastkey operator confirm`): another `lastkey \
             operator cancel` drops them"
        ),
        false => dropped,
    }
}

fn sentence(status: &Value) -> String {
    let progress = &status["progress"];
    let order = status["order"].as_str();
    if let (Some(order), Some(entered), Some(threshold)) =
        (order, progress["entered"].as_u64(), progress["threshold"].as_u64())
        && (entered > 0 || order != "unseal")
    {
        let order = under_way(status).unwrap_or_else(|| order.to_owned());
        return format!("{order}: {entered} of {threshold} shares entered");
    }
    let kind = status["seal"]["kind"].as_str().unwrap_or("unknown");
    // While it is sealed that is refused.
    let pending = if status["pending"].is_object() && status["state"] == "unsealed" {
        "; new shares wait to be entered: lastkey operator confirm"
    } else {
        ""
    };
    let held = status["held"].as_str().map(|why| format!(": {why}")).unwrap_or_default();
    format!(
        "the server is {} (seal: {kind}){held}{pending}",
        status["state"].as_str().unwrap_or("?")
    )
}

/// One share, from the terminal or standard input; what is mistyped is found out here already.
pub(crate) fn read_share(status: &Value) -> Result<Zeroizing<String>, Failure> {
    let entered = status["progress"]["entered"].as_u64().unwrap_or(0);
    let threshold = status["progress"]["threshold"]
        .as_u64()
        .or_else(|| status["seal"]["threshold"].as_u64())
        .unwrap_or(0);
    let line = if io::stdin().is_terminal() {
        ask(&format!("Share ({} of {threshold} needed, not shown): ", entered + 1))?
    } else {
        read_line(b'\n')?.0
    };
    let line = Zeroizing::new(line.trim().to_owned());
    if line.is_empty() {
        return Err(Failure::new(Exit::Usage, "no share was given"));
    }
    Share::parse(&line).map_err(Failure::failed)?;
    Ok(line)
}

/// A line up to its end, or to `other`, and whether it was that.
fn read_line(other: u8) -> Result<(Zeroizing<String>, bool), Failure> {
    let mut line = Zeroizing::new(Vec::with_capacity(MAX_LINE));
    let mut ended = None;
    for byte in io::stdin().lock().bytes().take(MAX_LINE) {
        let byte = byte.map_err(Failure::failed)?;
        if byte == b'\n' || byte == other {
            ended = Some(byte);
            break;
        }
        line.push(byte);
    }
    let text = std::str::from_utf8(&line).map_err(|_| Failure::failed("that is no share"))?;
    Ok((Zeroizing::new(text.to_owned()), other != b'\n' && ended == Some(other)))
}

/// Asks on the terminal, which shows nothing of what is typed.
fn ask(question: &str) -> Result<Zeroizing<String>, Failure> {
    let terminal = io::stdin();
    let before = tcgetattr(&terminal).map_err(Failure::failed)?;
    restore_when_ended(&before)?;
    let mut quiet = before.clone();
    // Ctrl-C must not end us while the terminal is mute: it ends the line, and then us.
    let interrupt = before.special_codes[SpecialCodeIndex::VINTR];
    quiet.local_modes.remove(LocalModes::ECHO | LocalModes::ISIG);
    quiet.local_modes.insert(LocalModes::ECHONL);
    quiet.special_codes[SpecialCodeIndex::VEOL] = interrupt;
    tcsetattr(&terminal, OptionalActions::Flush, &quiet).map_err(Failure::failed)?;
    let mut error = io::stderr().lock();
    let _ = write!(error, "{question}");
    let _ = error.flush();
    let line = read_line(interrupt);
    let restored = tcsetattr(&terminal, OptionalActions::Flush, &before);
    *MUTE.lock() = None;
    let (line, interrupted) = line?;
    restored.map_err(Failure::failed)?;
    if interrupted {
        let _ = writeln!(error);
        let _ = kill_process(getpid(), Signal::INT);
        return Err(Failure::failed("interrupted"));
    }
    Ok(line)
}

/// How the terminal was before it was mute, for who ends us meanwhile.
static MUTE: Mutex<Option<Termios>> = Mutex::new(None);

/// From here on the signals that end a process without asking restore the terminal first. Which one
/// it was is told by the exit code, as shells tell it. Ctrl-C and its like are no signals while the
/// terminal is mute.
fn restore_when_ended(before: &Termios) -> Result<(), Failure> {
    static WATCHED: Mutex<bool> = Mutex::new(false);
    *MUTE.lock() = Some(before.clone());
    let mut watched = WATCHED.lock();
    if *watched {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(Failure::failed)?;
    let signals = {
        let _entered = runtime.enter();
        let kinds = [SignalKind::hangup(), SignalKind::quit(), SignalKind::terminate()];
        kinds.map(|kind| signal(kind).map(|signal| (signal, kind.as_raw_value())))
    };
    let [hangup, quit, terminate] = signals;
    let (mut hangup, mut quit, mut terminate) = (
        hangup.map_err(Failure::failed)?,
        quit.map_err(Failure::failed)?,
        terminate.map_err(Failure::failed)?,
    );
    thread::spawn(move || {
        let number = runtime.block_on(async {
            tokio::select! {
                _ = hangup.0.recv() => hangup.1,
                _ = quit.0.recv() => quit.1,
                _ = terminate.0.recv() => terminate.1,
            }
        });
        if let Some(before) = &*MUTE.lock() {
            // What was typed of a share is dropped: whoever reads next must not get it.
            let _ = tcsetattr(io::stdin(), OptionalActions::Flush, before);
        }
        process::exit(128 + number);
    });
    *watched = true;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_told_to_confirm_while_the_server_is_sealed() {
        let status = |state: &str| {
            let (seal, pending) = (json!({ "kind": "file" }), json!({ "kind": "shamir" }));
            json!({ "state": state, "seal": seal, "pending": pending })
        };
        assert!(sentence(&status("unsealed")).contains("operator confirm"));
        assert!(!sentence(&status("sealed")).contains("operator confirm"));
    }

    #[test]
    fn a_share_is_asked_for_where_it_is_what_unseals() {
        let of = |kind: &str| json!({ "kind": kind });
        let away = || json!("the token is away");
        for (seal, pending, waiting, entered, expected) in [
            ("shamir", Value::Null, Value::Null, 0, true),
            ("shamir", of("shamir"), Value::Null, 0, true),
            ("file", of("shamir"), Value::Null, 0, false),
            // It may have been put right since, and only this asks it again.
            ("pkcs11", of("shamir"), json!("the token refuses"), 0, false),
            ("pkcs11", of("shamir"), away(), 1, true),
            ("pkcs11", Value::Null, away(), 0, false),
        ] {
            let progress = json!({ "entered": entered, "threshold": 2 });
            let status = json!({
                "seal": of(seal), "pending": pending, "waiting": waiting, "progress": progress,
            });
            assert_eq!(takes_shares(&status), expected, "{status}");
        }
    }

    #[test]
    fn who_cancels_is_told_what_that_has_dropped() {
        let status = |order: Value, pending: bool| {
            let pending = if pending { json!({ "kind": "shamir" }) } else { Value::Null };
            json!({ "order": order, "target": null, "pending": pending })
        };
        let (none, confirm) = (Value::Null, json!("confirm"));
        for (before, after, expected) in [
            (
                status(confirm.clone(), true),
                true,
                "what was entered for confirm is dropped; the new",
            ),
            (status(none.clone(), true), false, "the new shares are dropped"),
            (status(confirm, false), false, "what was entered for confirm is dropped"),
            (status(none.clone(), false), false, "nothing"),
        ] {
            let said = cancelled(&before, &status(none.clone(), after));
            assert!(said.starts_with(expected), "{said}");
            assert_eq!(said.contains("another `lastkey operator cancel`"), after, "{said}");
        }
    }

    #[test]
    fn keepers_are_told_what_their_share_is_for() {
        let progress = json!({ "entered": 1, "threshold": 2 });
        let status = json!({ "order": "migrate", "target": "file", "progress": progress });
        assert_eq!(sentence(&status), "migrate to file: 1 of 2 shares entered");
        let status = json!({ "order": "unseal", "target": null, "progress": progress });
        assert_eq!(sentence(&status), "unseal: 1 of 2 shares entered");
    }
}
