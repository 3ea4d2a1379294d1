//! The serving thread's side of the metrics: it makes a snapshot whenever somebody rings for one.

use std::rc::Rc;

use tokio::sync::mpsc;

use super::Shared;
use crate::metrics::{Bell, Restored, Snapshot};
use crate::state::{InstanceNumber, RegionId};

/// Answers the bells for as long as the server runs.
pub(super) async fn answer(shared: Rc<Shared>, mut bells: mpsc::Receiver<Bell>, restored: Restored) {
    while let Some(bell) = bells.recv().await {
        // Whoever rang may have given up meanwhile.
        let _ = bell.send(take(&shared, restored).await);
    }
}

/// Regions and instances are gone through in parts, between which clients have their turn.
async fn take(shared: &Shared, restored: Restored) -> Snapshot {
    let now = shared.now();
    let mut snapshot = Snapshot::of(&shared.service.borrow(), now, shared.open.get(), restored);
    let mut region = Some(RegionId(0));
    while let Some(after) = region {
        region = snapshot.add_regions(&shared.service.borrow(), after);
        tokio::task::yield_now().await;
    }
    let mut instance = Some(InstanceNumber(0));
    while let Some(after) = instance {
        instance = snapshot.add_instances(&shared.service.borrow(), after, now);
        tokio::task::yield_now().await;
    }
    snapshot
}
