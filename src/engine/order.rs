//! In which order the operations on one model take place. Pure.
//!
//! One operation runs, and one more waits: of several that would wait, only the newest has a meaning. What it overtakes
//! is answered at once. Begin with [`turn`].

use super::lifecycle::EVICTED;
use super::overrides::Overrides;
use crate::error::Error;

/// What is to be done with a model.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// Load or reload it, with this in place of the repository's files.
    Load(Overrides),
    /// Take it out of service.
    Unload(Unload),
}

/// How to unload a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Unload {
    /// Whether models that only this one needs are unloaded, too.
    pub dependents: bool,
    /// Why it may not be served any more; `None` if nobody wants it.
    pub because: Option<Because>,
}

/// Why a model is taken out of service that is still wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Because {
    /// Others need its memory. Nobody has asked for that, so it gives way to whatever else is done with the model.
    Evicted,
    /// It cannot be served, for this reason.
    Unservable(String),
}

impl Because {
    /// The reason as people see it.
    pub fn text(&self) -> &str {
        match self {
            Self::Evicted => EVICTED,
            Self::Unservable(reason) => reason,
        }
    }
}

/// The operation that runs.
#[derive(Clone, Copy, Debug)]
pub struct Running<'a> {
    /// What it does.
    pub what: &'a What,
    /// Whether it has looked at the model's files; until then, it will see what is there later.
    pub begun: bool,
}

/// What becomes of a new operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It begins now.
    Begin,
    /// It is what runs already.
    JoinRunning,
    /// It is what waits already.
    JoinWaiting,
    /// It waits, in place of what waited before; `cancel` if what runs is not worth finishing.
    Wait {
        /// Whether the running operation should end as soon as it can.
        cancel: bool,
    },
}

/// The turn of `new`, which is newer than what runs and what waits.
pub fn turn(running: Option<Running<'_>>, waiting: Option<&What>, new: &What) -> Turn {
    let Some(running) = running else { return Turn::Begin };
    match waiting {
        Some(waiting) if same(waiting, new) => Turn::JoinWaiting,
        Some(_) => Turn::Wait { cancel: is_pointless(running, new) },
        None if !running.begun && same(running.what, new) => Turn::JoinRunning,
        None => Turn::Wait { cancel: is_pointless(running, new) },
    }
}

/// Whether both ask for the same, as far as that is cheap to say.
fn same(one: &What, other: &What) -> bool {
    match (one, other) {
        (What::Load(one), What::Load(other)) => {
            one.files.is_empty() && other.files.is_empty() && one.config == other.config
        }
        (What::Unload(one), What::Unload(other)) => one == other,
        (What::Load(_), What::Unload(_)) | (What::Unload(_), What::Load(_)) => false,
    }
}

/// Whether `new` undoes what runs.
///
/// A load that has begun is finished although a newer load waits: otherwise a model that is loaded more often than it
/// takes would never be served.
fn is_pointless(running: Running<'_>, new: &What) -> bool {
    match (running.what, new) {
        (What::Load(_), What::Unload(_)) => true,
        (What::Load(_), What::Load(_)) => !running.begun,
        (What::Unload(_), _) => false,
    }
}

/// The answer to an operation that a newer one has overtaken, in the words of the reference server.
pub fn outdated(what: &What) -> Error {
    match what {
        What::Load(_) => outdated_load(),
        What::Unload(_) => outdated_operation("unload"),
    }
}

/// The same for a load.
pub fn outdated_load() -> Error {
    outdated_operation("load")
}

fn outdated_operation(operation: &str) -> Error {
    Error::unavailable(format!(
        "Newer operation has been applied to the model lifecycle, current {operation} operation is out-dated."
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn load(config: Option<&str>) -> What {
        What::Load(Overrides { config: config.map(str::to_owned), ..Overrides::default() })
    }

    fn unload() -> What {
        What::Unload(Unload::default())
    }

    fn after(running: &What, begun: bool, waiting: Option<&What>, new: &What) -> Turn {
        turn(Some(Running { what: running, begun }), waiting, new)
    }

    #[test]
    fn equal_loads_are_one_until_files_were_looked_at() {
        assert_eq!(turn(None, None, &load(None)), Turn::Begin);
        assert_eq!(after(&load(None), false, None, &load(None)), Turn::JoinRunning);
        // The files may have changed since.
        assert_eq!(after(&load(None), true, None, &load(None)), Turn::Wait { cancel: false });
        assert_eq!(after(&load(None), true, Some(&load(None)), &load(None)), Turn::JoinWaiting);
    }

    #[test]
    fn the_newest_wins() {
        assert_eq!(after(&load(None), true, Some(&load(None)), &load(Some("{}"))), Turn::Wait { cancel: false });
        assert_eq!(after(&load(None), false, None, &load(Some("{}"))), Turn::Wait { cancel: true });
        assert_eq!(after(&load(None), true, Some(&load(None)), &unload()), Turn::Wait { cancel: true });
        assert_eq!(after(&unload(), true, None, &load(None)), Turn::Wait { cancel: false });
    }

    fn anything() -> impl Strategy<Value = What> {
        prop_oneof![Just(load(None)), Just(load(Some("{}"))), Just(load(Some("{ }"))), Just(unload())]
    }

    proptest! {
        /// Whatever comes, what is done last is what was asked for last.
        #[test]
        fn the_last_word_is_the_last_asked(asked in proptest::collection::vec((anything(), any::<bool>()), 1..20)) {
            let (mut running, mut waiting): (Option<(What, bool)>, Option<What>) = (None, None);
            for (new, begins) in &asked {
                let now = running.as_ref().map(|(what, begun)| Running { what, begun: *begun });
                match turn(now, waiting.as_ref(), new) {
                    Turn::Begin => running = Some((new.clone(), matches!(new, What::Unload(_)))),
                    Turn::JoinRunning => {
                        prop_assert!(waiting.is_none());
                        prop_assert!(same(&running.as_ref().expect("it runs").0, new));
                    }
                    Turn::JoinWaiting => prop_assert!(same(waiting.as_ref().expect("it waits"), new)),
                    Turn::Wait { .. } => waiting = Some(new.clone()),
                }
                if let Some((_, begun)) = &mut running {
                    *begun |= *begins;
                }
            }
            let last = waiting.or(running.map(|(what, _)| what)).expect("something was asked");
            prop_assert!(same(&last, &asked.last().expect("at least one").0));
        }
    }
}
