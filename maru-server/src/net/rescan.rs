//! SIGHUP: the options are read again, and pools that are new in them are taken, as when a device was plugged in.

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use bytesize::ByteSize;
use tokio::signal::unix::Signal;
use tracing::{error, info, warn};

use super::{Reread, Shared, served_pool};
use crate::error::ServerError;
use crate::pool::PoolPlan;

/// Takes new pools on every signal.
pub(super) async fn rescan(shared: Rc<Shared>, mut hangup: Signal, reread: Reread) {
    while hangup.recv().await.is_some() {
        let options = match tokio::task::spawn_blocking(reread).await {
            Ok(Ok(options)) => options,
            Ok(Err(error)) => {
                error!(%error, "SIGHUP: the options can't be read, so everything stays as it is");
                continue;
            }
            Err(panic) => {
                error!(%panic, "SIGHUP: reading the options failed");
                continue;
            }
        };
        let before = shared.memory.borrow().facts().count();
        for plan in options.pools() {
            if let Err(error) = take(&shared, plan, options.pool_size, options.grace).await {
                error!(%error, "SIGHUP: a pool can't be taken");
            }
        }
        let (pools, entries) =
            (shared.memory.borrow().facts().count(), shared.service.borrow().config().limits.max_entries);
        info!(pools, new = pools - before, "SIGHUP: looked for new pools");
        if pools > before {
            warn!(
                entries,
                "how many entries there can be stays as it was at the start; start the server anew to raise that"
            );
        }
    }
}

/// Takes a pool, unless the server has it.
async fn take(
    shared: &Shared,
    plan: PoolPlan,
    folder_size: Option<ByteSize>,
    grace: Duration,
) -> Result<(), ServerError> {
    // What is not there yet is in use by nobody.
    if let Some(path) = plan.path.canonicalize().ok().as_deref().and_then(Path::to_str)
        && shared.memory.borrow().facts().any(|facts| facts.path == path)
    {
        return Ok(());
    }
    let open = shared.memory.borrow().opener(plan, folder_size, grace);
    let opened = tokio::task::spawn_blocking(open).await;
    let pool = opened.map_err(|panic| ServerError::System {
        what: "opening a pool failed",
        source: std::io::Error::other(panic),
    })??;
    let facts = shared.memory.borrow_mut().push(pool)?;
    shared.service.borrow_mut().add_pool(served_pool(facts));
    Ok(())
}
