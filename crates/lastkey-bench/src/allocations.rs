//! What one request allocates: the server's own code in a process of this binary, whose allocator
//! counts. The floor beside it, counted the same way.

use std::path::Path;

use lastkey_testbed::{Daemon, Ready};

use crate::{
    error::Error,
    floor::shape::Shape,
    heap,
    load::{Caller as _, Connection, Target, Template},
    options::Options,
    report::{Allocations, Reporter},
    scenario::{Scenario, Side},
    sides::{Account, Floor, FloorPlan, Sizes, first_line},
};

const CONNECTIONS: usize = 16;
/// Requests on each connection before the counting begins, so that buffers have grown.
const BEFORE: usize = 100;
const COUNTED: usize = 500;

/// Counts for each operation over HTTPS.
pub(crate) async fn count(
    options: &Options,
    shape: &Shape,
    dir: &Path,
    reporter: &mut Reporter,
) -> Result<(), Error> {
    let dir = dir.join("counted");
    std::fs::create_dir_all(&dir)?;
    let (_server, account, counters) = start(options, &dir).await?;
    for scenario in
        [Scenario::Encrypt, Scenario::Decrypt, Scenario::DataKey, Scenario::CreateKeyHttps]
    {
        let template = account.template(options, scenario);
        let body = account.ask(options, scenario).await?.to_string().len();
        let sizes = Sizes { body, plugin_ciphertext: 0 };
        let plan = FloorPlan { scenario, sizes, shape: Some(shape), count: true };
        let floor = Floor::start(options, plan, &dir.join(scenario.name()))?;
        let sides = [
            (Side::Floor, &floor.target, floor.ready.counters.as_path()),
            (Side::Ours, &account.target, counters.as_path()),
        ];
        for (side, target, counters) in sides {
            let counted = exchange(target, &template, side, counters).await?;
            let [per_request, bytes_per_request] =
                counted.map(|count| count as f64 / (CONNECTIONS * COUNTED) as f64);
            reporter.allocations(Allocations {
                event: "allocations",
                scenario,
                side,
                per_request,
                bytes_per_request,
            })?;
        }
    }
    Ok(())
}

/// Allocations and bytes of all counted requests together.
async fn exchange(
    target: &Target,
    template: &Template,
    side: Side,
    counters: &Path,
) -> Result<[u64; 2], Error> {
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(Connection::open(target, template.clone(), side.name()).await?);
    }
    let connections = rounds(connections, BEFORE).await?;
    let before = heap::ask(counters)?;
    rounds(connections, COUNTED).await?;
    let after = heap::ask(counters)?;
    Ok([after[0] - before[0], after[1] - before[1]])
}

/// So many requests on each connection, all connections at once.
async fn rounds(connections: Vec<Connection>, requests: usize) -> Result<Vec<Connection>, Error> {
    let tasks: Vec<_> = connections
        .into_iter()
        .map(|mut connection| {
            tokio::spawn(async move {
                for _ in 0..requests {
                    connection.call().await?;
                }
                Ok::<_, Error>(connection)
            })
        })
        .collect();
    let mut connections = Vec::new();
    for task in tasks {
        connections.push(task.await??);
    }
    Ok(connections)
}

/// Starts the counting server.
async fn start(
    options: &Options,
    dir: &Path,
) -> Result<(Daemon, Account, std::path::PathBuf), Error> {
    let mut command = std::process::Command::new(std::env::current_exe()?);
    command.arg("counted-server").arg("--dir").arg(dir);
    let mut process = Daemon::start_piped("counted-server", &command, dir)?;
    let ready: Ready = first_line(&mut process)?;
    let mut account = Account::of(options, &ready)?;
    account.prepare(options).await?;
    Ok((process, account, dir.join("counters.sock")))
}
