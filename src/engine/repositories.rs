//! The model repositories as the engine sees them: the only place that knows where models lie.
//!
//! Everything here blocks. Begin with [`Repositories::scan`].

use std::collections::BTreeMap;
use std::time::Duration;

use super::Key;
use crate::error::{Error, Kind, Result};
use crate::repository::{Found, Roots, Stamp, nowhere};

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
    /// Repositories that cannot be read now, by their names, each with the reason, which was said.
    pub failed: Vec<(String, Error)>,
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
    /// If no repository can be read.
    pub fn scan(&self, age_max: Duration) -> Result<Look> {
        let (mut look, mut readable) = (Look::default(), 0);
        for (namespace, roots) in &self.namespaces {
            let scan = roots.scan(age_max);
            let key = |name: String| Key::within(namespace, &name);
            look.models.extend(scan.models.into_iter().map(|(name, model)| (key(name), model.stamp)));
            look.unreadable.extend(scan.unreadable.into_iter().map(|(name, reason)| (key(name), reason)));
            look.duplicates.extend(scan.duplicates.into_iter().map(|(name, reason)| (key(name), reason)));
            look.warnings.extend(scan.warnings);
            for (name, root) in roots.names().zip(scan.roots) {
                match root {
                    Ok(_) => readable += 1,
                    Err(error) => look.failed.push((name.to_owned(), error)),
                }
            }
        }
        match look.failed.as_slice() {
            [(_, first), others @ ..] if readable == 0 => {
                let all = others.iter().fold(first.to_string(), |all, (_, error)| format!("{all}; {error}"));
                Err(Error::new(first.kind(), all))
            }
            _ => Ok(look),
        }
    }

    /// Looks at one model.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is no such model, otherwise why it cannot be looked at.
    pub fn find(&self, key: &Key, warnings: &mut Vec<String>) -> Result<Found> {
        self.roots_of(key).ok_or_else(|| nowhere(&key.name))?.find(&key.name, warnings)
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
        let (mut keys, mut perhaps) = (Vec::new(), Vec::new());
        for (namespace, roots) in &self.namespaces {
            match roots.find(name, &mut Vec::new()) {
                Ok(_) => keys.push(Key::within(namespace, name)),
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(_) => perhaps.push(Key::within(namespace, name)),
            }
        }
        // Of one that may be where nobody can look now, its load says why.
        keys.extend(perhaps.drain(..).take(usize::from(keys.is_empty())));
        if keys.is_empty() {
            keys.push(Key::of(name));
        }
        keys
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn a_repository_that_is_away_does_not_take_the_others_with_it() {
        let top = tempfile::tempdir().expect("there is room");
        fs::create_dir_all(top.path().join("here/a/1")).expect("writable");
        let at = |names: [&str; 2]| Roots::from(names.map(|name| top.path().join(name)).to_vec());
        let named = |name: &str| top.path().join(name).display().to_string();
        for namespacing in [false, true] {
            let repositories = Repositories::new(&at(["away", "here"]), namespacing);
            let look = repositories.scan(Duration::ZERO).expect("one can be read");
            assert_eq!(look.models.keys().map(|key| &*key.name).collect::<Vec<_>>(), ["a"]);
            assert_eq!(look.failed.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(), [named("away")]);
            let find = |name: &str| match repositories.keys(name).as_slice() {
                [key] => repositories.find(key, &mut Vec::new()).map(|found| found.dir.path),
                keys => panic!("{keys:?}"),
            };
            assert_eq!(find("a"), Ok(top.path().join("here/a")));
            let error = find("b").expect_err("it was in none");
            let why = format!("cannot read model repository '{}'", named("away"));
            assert!(namespacing || error.kind() == Kind::NotFound && error.message().contains(&why), "{error}");
            let error =
                Repositories::new(&at(["away", "gone"]), namespacing).scan(Duration::ZERO).expect_err("none is there");
            assert!(
                error.message().contains("/away")
                    && error.message().contains("; ")
                    && error.message().contains("/gone"),
                "{error}"
            );
        }
        let nothing = Repositories::new(&Vec::<PathBuf>::new().into(), false);
        assert!(nothing.scan(Duration::ZERO).is_ok());
    }
}
