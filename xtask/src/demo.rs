//! `cargo xtask demo`: builds the product and starts the demo, which lives beside the harness of
//! the tests (`lastkey-testbed`), so that both start the same peers in the same way.

use crate::peers;
use crate::shell::{self, Error, Step};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Which kube-apiserver to show
    #[arg(long, default_value = "1.37.0", value_parser = ["1.37.0", "1.31.0"])]
    kubernetes: String,
    /// Stop after the last step instead of leaving everything running
    #[arg(long)]
    once: bool,
}

/// Installs what the demo needs, builds, and hands over to it.
pub(crate) fn run(options: &Options) -> Result<(), Error> {
    let apiserver = format!("kube-apiserver-{}", options.kubernetes);
    peers::install(&["etcd", "etcdctl", "kubectl", &apiserver])?;
    Step::cargo("build")
        .args(["--quiet", "--package", "lastkey", "--package", "lastkey-testbed", "--bins"])
        .run("building lastkey and the demo")?;
    let built = shell::target_dir().join("debug");
    let mut demo = Step::new(built.join("lastkey-demo"))
        .args(["--kubernetes", &options.kubernetes, "--lastkey"])
        .args([built.join("lastkey")]);
    if options.once {
        demo = demo.args(["--once"]);
    }
    demo.run("the demo")
}
