//! Watches the repository in poll mode: what changed is loaded again, what is gone is unloaded.

use std::time::Duration;

use tokio::sync::mpsc;

use super::loader;
use super::manager::Command;
use crate::repository::{self, Roots, Scan};

/// Looks at `roots` every `interval` and commands what the difference asks for; ends with the manager.
///
/// A model that looks different from one look to the next is loaded only once it looks the same twice, so that files
/// that are still being copied are left alone.
pub(super) async fn watch(roots: Roots, interval: Duration, scan: Scan, commands: mpsc::Sender<Command>) {
    let mut ticks = tokio::time::interval(interval);
    ticks.tick().await;
    let mut loaded: std::collections::BTreeMap<_, _> =
        scan.models.into_iter().map(|(name, model)| (name, model.stamp)).collect();
    let mut unsettled = std::collections::BTreeMap::new();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = commands.closed() => return,
        }
        let roots = roots.clone();
        let scan = match loader::on_thread("nereid-scan", move || roots.scan()).await {
            Ok(Ok(scan)) => scan,
            Ok(Err(error)) | Err(error) => {
                tracing::warn!(%error, "the repository cannot be read, its models stay as they are");
                continue;
            }
        };
        let changes = repository::changes(&loaded, &scan);
        for name in changes.added.into_iter().chain(changes.changed) {
            let Some(stamp) = scan.models.get(&name).map(|model| model.stamp.clone()) else { continue };
            if unsettled.get(&name) != Some(&stamp) {
                unsettled.insert(name, stamp);
                continue;
            }
            unsettled.remove(&name);
            loaded.insert(name.clone(), stamp);
            if commands.send(Command::polled_load(name)).await.is_err() {
                return;
            }
        }
        for name in changes.removed {
            loaded.remove(&name);
            if commands.send(Command::polled_unload(name)).await.is_err() {
                return;
            }
        }
    }
}
