//! What the state machine of models is told, and what it says is to be done.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::engine::Key;
use crate::engine::lifecycle::ModelView;
use crate::engine::order::What;
use crate::engine::overrides::Overrides;
use crate::engine::progress::Progress;
use crate::error::{Error, Result};
use crate::model::{ModelConfig, Version};
use crate::repository::Stamp;

/// What has happened.
#[derive(Debug)]
pub enum Event<S, C> {
    /// The server starts: these models are to be there, whether they exist or not.
    Start(Vec<(Key, Vec<C>)>),
    /// Somebody asks for an operation.
    Ask {
        /// The model.
        key: Key,
        /// The operation.
        what: What,
        /// Who is to be answered.
        callers: Vec<C>,
    },
    /// A load has found out which versions it will open.
    Resolved {
        /// The model.
        key: Key,
        /// Its versions.
        versions: Vec<Version>,
        /// Which load that is; it may have ended by now.
        progress: Arc<Progress>,
    },
    /// A load has ended.
    Loaded {
        /// The model.
        key: Key,
        /// How.
        result: Result<Loaded<S>>,
    },
    /// Versions are drained and dropped.
    Retired(Retired),
    /// A version cannot serve any more.
    Lost {
        /// The model.
        key: Key,
        /// The version.
        version: Version,
        /// Why.
        error: Error,
    },
    /// The server ends.
    Stop,
}

/// What a load led to.
#[derive(Debug)]
pub enum Loaded<S> {
    /// What is served is what the files say.
    Unchanged,
    /// The model is known, and is loaded once a request asks for it.
    Asleep,
    /// These models have to be ready first.
    Needs(Vec<Key>),
    /// All versions that are to be served from now on.
    New {
        /// Where they come from.
        origin: Option<Origin>,
        /// What serves them.
        versions: BTreeMap<Version, S>,
        /// Those of them that were served before and go on.
        kept: BTreeSet<Version>,
        /// The models that this one is made of.
        members: Vec<Key>,
    },
}

/// Where a model that is served comes from.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Of the files.
    pub stamp: Stamp,
    /// Its configuration.
    pub config: Arc<ModelConfig>,
    /// Whether the configuration is not that of the files.
    pub config_overridden: bool,
    /// Whether the files are not those of the repository.
    pub files_overridden: bool,
}

/// Versions that were drained and dropped.
#[derive(Clone, Debug)]
pub struct Retired {
    /// Their model.
    pub key: Key,
    /// Those that are not served by a newer copy.
    pub unloaded: Vec<Version>,
    /// What replaced copies were made of, which had to stay for their requests.
    pub members: Vec<Key>,
    /// Whether this was an unload, after which the model's next operation may begin.
    pub operation: bool,
    /// Where they came from, if they leave only because others need their memory, and may come back as they are.
    pub evicted: Option<Origin>,
}

/// What is to be done.
#[derive(Debug)]
pub enum Effect<S, C> {
    /// Show readers this model; `None` if it is to be forgotten.
    Publish(Key, Option<ModelView<S>>),
    /// Give none of their earlier answers from now on, before anything is shown: what they are made of is replaced.
    Outdate(Vec<S>),
    /// Answer a caller.
    Answer(C, Result<()>),
    /// Load a model, and tell of the end by [`Event::Loaded`].
    Load(Job<S>),
    /// These stay after all, although their memory was promised to somebody.
    Stay(Vec<S>),
    /// Drain and drop these, and tell of the end by [`Event::Retired`].
    Retire(Vec<S>, Retired),
}

/// A load.
#[derive(Debug)]
pub struct Job<S> {
    /// The model.
    pub key: Key,
    /// What replaces the repository's files.
    pub overrides: Overrides,
    /// Whether it is loaded again although its own files have not changed: what it is made of has.
    pub again: bool,
    /// What is served now, and where it comes from.
    pub served: Option<(Origin, BTreeMap<Version, S>)>,
    /// How far it is, and whether it is still wanted.
    pub progress: Arc<Progress>,
    /// Whether it was tried to load the models that this one is made of.
    pub members_tried: bool,
}

impl<S> Job<S> {
    /// Whether the model is served meanwhile, so that nobody waits for this load but who asked for it.
    pub fn is_reload(&self) -> bool {
        self.served.is_some()
    }
}
