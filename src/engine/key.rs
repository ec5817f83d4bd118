//! Which model is meant: its name, and with `--model-namespacing` the repository that it lies in.

use std::fmt;
use std::sync::Arc;

/// The identity of a model. Without namespaces a name is enough, and the namespace is empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The model's name.
    pub name: Arc<str>,
    /// The path of its repository, or nothing.
    pub namespace: Arc<str>,
}

impl Key {
    /// The model of this name, where there are no namespaces.
    pub fn of(name: &str) -> Self {
        Self::within("", name)
    }

    /// The model of this name in a namespace.
    pub fn within(namespace: &str, name: &str) -> Self {
        Self { name: name.into(), namespace: namespace.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.namespace {
            "" => f.write_str(&self.name),
            namespace => write!(f, "{namespace}::{}", self.name),
        }
    }
}
