//! The model repositories as the engine sees them: the only place that knows where models lie.
//!
//! Everything here blocks. Begin with [`Repositories::scan`].

use std::collections::BTreeMap;
use std::time::Duration;

use super::Key;
use crate::error::{Error, Kind, Result};
use crate::repository::{Found, Roots, Stamp};

/// Where models come from.
pub struct Repositories {
    /// By namespace: one for each repository, or one without a name for all of them.
    namespaces: Vec<(String, Roots)>,
}

/// One look at all repositories.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// The models that are there, each with what changes when a file of it does.
    pub models: BTreeMap<Key, Stamp>,
    /// Models that are there and cannot be read now, each with the reason.
    pub unreadable: BTreeMap<Key, String>,
    /// Models that are in more than one repository, each with the reason why that cannot be.
    pub duplicates: BTreeMap<Key, String>,
    /// What was ignored and may be a mistake.
    pub warnings: Vec<String>,
}

impl Look {
    /// Every model that is somehow there.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.models.keys().chain(self.unreadable.keys()).chain(self.duplicates.keys())
    }
}

impl Repositories {
    /// The repositories at these places; with `namespacing` each is a namespace of its own.
    pub fn new(roots: &Roots, namespacing: bool) -> Self {
        let namespaces = if namespacing { roots.each() } else { vec![(String::new(), roots.clone())] };
        Self { namespaces }
    }

    /// Looks at everything.
    ///
    /// # Errors
    /// If a repository cannot be read.
    pub fn scan(&self, age_max: Duration) -> Result<Look> {
        let mut look = Look::default();
        for (namespace, roots) in &self.namespaces {
            let scan = roots.scan_not_older(age_max)?;
            let key = |name: String| Key::within(namespace, &name);
            look.models.extend(scan.models.into_iter().map(|(name, model)| (key(name), model.stamp)));
            look.unreadable.extend(scan.unreadable.into_iter().map(|(name, reason)| (key(name), reason)));
            look.duplicates.extend(scan.duplicates.into_iter().map(|(name, reason)| (key(name), reason)));
            look.warnings.extend(scan.warnings);
        }
        Ok(look)
    }

    /// Looks at one model.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is no such model, otherwise why it cannot be looked at.
    pub fn find(&self, key: &Key, warnings: &mut Vec<String>) -> Result<Found> {
        let nowhere =
            || Error::not_found(format!("failed to load '{}', failed to poll from model repository", key.name));
        let found = self.roots_of(key).ok_or_else(nowhere)?.find(&key.name, warnings);
        found.map_err(|error| if error.kind() == Kind::NotFound { nowhere() } else { error })
    }

    /// Ends what waits for object stores.
    pub(super) fn end_fetches(&self) {
        self.namespaces.iter().for_each(|(_, roots)| roots.stop());
    }

    /// The repositories in which a model of this key would be.
    pub(super) fn roots_of(&self, key: &Key) -> Option<&Roots> {
        let mut namespaces = self.namespaces.iter();
        namespaces.find(|(namespace, _)| **namespace == *key.namespace).map(|(_, roots)| roots)
    }

    /// The models of that name: one, there or not, and with namespaces one for each repository that has it.
    pub(super) fn keys(&self, name: &str) -> Vec<Key> {
        if let [(namespace, _)] = self.namespaces.as_slice() {
            return vec![Key::within(namespace, name)];
        }
        let there = self.namespaces.iter().filter(|(_, roots)| roots.find(name, &mut Vec::new()).is_ok());
        let mut keys: Vec<Key> = there.map(|(namespace, _)| Key::within(namespace, name)).collect();
        if keys.is_empty() {
            keys.push(Key::of(name));
        }
        keys
    }
}
