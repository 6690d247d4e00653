//! What goes to and comes from sinks: any line of the log is one syslog message whose head nobody
//! can break out of; what a receiver answers, and the file of a sink's place.
#![no_main]

use lastkey_sinks::{fuzzing, message};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &[u8]| {
    let message = message(line);
    let head = message.strip_suffix(line).expect("the line stands at the end as it is");
    let head = std::str::from_utf8(head).expect("the head is text");
    let words: Vec<&str> = head.split(' ').collect();
    let [priority, time, _host, "lastkey", _process, id, "-", ""] = words[..] else {
        panic!("not a head of RFC 5424: {head}")
    };
    assert!(matches!(priority, "<110>1" | "<108>1"));
    assert!(time == "-" || time.len() == 24);
    assert!((1..=32).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic()));

    fuzzing::retry_after(line);
    fuzzing::place(line);
});
