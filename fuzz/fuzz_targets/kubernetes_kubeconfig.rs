#![no_main]
//! A kubeconfig: what is taken has addresses that are read as they are written.

use std::path::Path;

use lastkey_kubernetes::cluster::{ApiServer, Kubeconfig, ServerUrl};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    // no file is read: nothing lies beside this path
    let Ok(taken) = Kubeconfig::parse(text, Path::new("/nonexistent/fuzz")) else { return };
    for server in &taken.access.servers {
        let again: ServerUrl = server.to_string().parse().expect("it was read before");
        assert_eq!(&again, server);
    }
    // A client takes a hundred times as long as the rest: a few of all inputs are enough.
    if text.len() % 16 == 0 {
        let _ = ApiServer::new(&taken.access);
    }
});
