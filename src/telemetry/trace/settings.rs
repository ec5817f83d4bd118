//! What is traced: settings of the server and of single models, and the choice of requests by them.
//!
//! Knows nothing of records or files. Begin with [`Store`].

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// What is recorded of a traced request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level {
    /// When it passed each stage.
    pub timestamps: bool,
    /// Its inputs and outputs.
    pub tensors: bool,
}

impl Level {
    /// Nothing: requests are not traced.
    pub const OFF: Level = Level { timestamps: false, tensors: false };

    /// The level of these names, which add up; none of them means off.
    ///
    /// # Errors
    /// The reason, if one is unknown or `OFF` is not alone.
    pub fn from_names(names: &[&str]) -> Result<Self, String> {
        let mut level = Self::OFF;
        for name in names {
            match *name {
                "OFF" if names.len() == 1 => {}
                "OFF" => return Err("Expect only one trace level 'OFF' is specified".to_owned()),
                // The reference server's older names mean no more today.
                "TIMESTAMPS" | "MIN" | "MAX" => level.timestamps = true,
                "TENSORS" => level.tensors = true,
                other => {
                    return Err(format!("unknown trace level '{other}', expected OFF, TIMESTAMPS or TENSORS"));
                }
            }
        }
        Ok(level)
    }

    /// The names of which it is the sum.
    pub fn names(self) -> Vec<&'static str> {
        let names = [(self.timestamps, "TIMESTAMPS"), (self.tensors, "TENSORS"), (!self.is_on(), "OFF")];
        names.into_iter().filter(|(given, _)| *given).map(|(_, name)| name).collect()
    }

    /// Whether requests are traced at all.
    pub fn is_on(self) -> bool {
        self != Self::OFF
    }
}

/// The settings that hold for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Values {
    /// What is recorded.
    pub level: Level,
    /// One of so many requests is traced; 0 for those only whose caller traces them.
    pub rate: u32,
    /// How many more requests are traced; `None` for any number.
    pub count: Option<u32>,
    /// Traces in one file before a next one is begun; 0 for one file.
    pub log_frequency: u32,
}

impl Default for Values {
    fn default() -> Self {
        Self { level: Level::OFF, rate: 1000, count: None, log_frequency: 0 }
    }
}

/// What a call does to one setting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Update<T> {
    /// Leaves it as it is.
    #[default]
    Keep,
    /// Takes it back: a model has the server's again, the server what it was started with.
    Clear,
    /// Sets it.
    Set(T),
}

impl<T: Copy> Update<T> {
    fn apply(self, own: &mut Option<T>) {
        match self {
            Update::Keep => {}
            Update::Clear => *own = None,
            Update::Set(value) => *own = Some(value),
        }
    }
}

/// What a call does to all settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// To what is recorded.
    pub level: Update<Level>,
    /// To how many requests are traced.
    pub rate: Update<u32>,
    /// To how many more are traced.
    pub count: Update<Option<u32>>,
    /// To the number of traces in a file.
    pub log_frequency: Update<u32>,
}

/// Settings that somebody gave, over those that hold elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Own {
    level: Option<Level>,
    rate: Option<u32>,
    count: Option<Option<u32>>,
    log_frequency: Option<u32>,
}

impl Own {
    fn change(&mut self, change: Change) {
        change.level.apply(&mut self.level);
        change.rate.apply(&mut self.rate);
        change.count.apply(&mut self.count);
        change.log_frequency.apply(&mut self.log_frequency);
    }

    fn over(self, below: Values) -> Values {
        Values {
            level: self.level.unwrap_or(below.level),
            rate: self.rate.unwrap_or(below.rate),
            count: self.count.unwrap_or(below.count),
            log_frequency: self.log_frequency.unwrap_or(below.log_frequency),
        }
    }
}

/// The settings of the server, and those of models that have some of their own.
#[derive(Debug)]
pub struct Store {
    /// What the server was started with.
    initial: Values,
    global: Scope,
    models: BTreeMap<String, Scope>,
}

/// The settings of the server or of a model, with the requests counted by them.
#[derive(Debug)]
struct Scope {
    own: Own,
    sampler: Sampler,
}

impl Scope {
    fn new(own: Own, below: Values) -> Self {
        Self { own, sampler: Sampler::new(own.over(below)) }
    }

    /// Counts go on from what is left, unless the change sets or takes back the count itself.
    fn changed(&self, change: Change, below: Values) -> Self {
        let mut own = self.own;
        if own.count.is_some() {
            own.count = Some(self.sampler.values().count);
        }
        own.change(change);
        Self::new(own, below)
    }
}

impl Store {
    /// Every model has these settings.
    pub fn new(initial: Values) -> Self {
        Self { initial, global: Scope::new(Own::default(), initial), models: BTreeMap::new() }
    }

    /// The settings of a model; of the server without a name. A count is what is left of it.
    pub fn values(&self, model: Option<&str>) -> Values {
        self.scope(model).sampler.values()
    }

    /// Whether any request may be traced.
    pub fn is_on(&self) -> bool {
        let scopes = std::iter::once(&self.global).chain(self.models.values());
        scopes.map(|scope| scope.sampler.values()).any(|values| values.level.is_on())
    }

    /// Decides whether a request for the model is traced, and how. A `forced` one is unless tracing is off or the
    /// count is used up.
    pub fn sample(&self, model: &str, forced: bool) -> Option<Values> {
        self.scope(Some(model)).sampler.take(forced)
    }

    /// Changes the settings of a model, or the server's, which hold for models that have none of their own.
    pub fn change(&mut self, model: Option<&str>, change: Change) {
        let Some(model) = model else {
            // What is left of a count that it was started with is from now on its own.
            self.global.own.count.get_or_insert(None);
            self.global = self.global.changed(change, self.initial);
            let below = self.global.sampler.values();
            for scope in self.models.values_mut() {
                *scope = scope.changed(Change::default(), below);
            }
            return;
        };
        let below = self.global.sampler.values();
        let fresh = || Scope::new(Own::default(), below);
        let scope = self.models.get(model).unwrap_or(&fresh()).changed(change, below);
        if scope.own == Own::default() {
            self.models.remove(model);
        } else {
            self.models.insert(model.to_owned(), scope);
        }
    }

    fn scope(&self, model: Option<&str>) -> &Scope {
        model.and_then(|model| self.models.get(model)).unwrap_or(&self.global)
    }
}

/// Counts requests and chooses among them.
#[derive(Debug)]
struct Sampler {
    values: Values,
    counts: Mutex<Counts>,
}

/// Both change together, so one lock holds them.
#[derive(Debug)]
struct Counts {
    seen: u64,
    left: Option<u32>,
}

impl Sampler {
    fn new(values: Values) -> Self {
        Self { values, counts: Mutex::new(Counts { seen: 0, left: values.count }) }
    }

    fn values(&self) -> Values {
        Values { count: self.counts.lock().left, ..self.values }
    }

    fn take(&self, forced: bool) -> Option<Values> {
        if !self.values.level.is_on() {
            return None;
        }
        let mut counts = self.counts.lock();
        if counts.left == Some(0) {
            return None;
        }
        if !forced {
            counts.seen += 1;
            if self.values.rate == 0 || !counts.seen.is_multiple_of(u64::from(self.values.rate)) {
                return None;
            }
        }
        counts.left = counts.left.map(|left| left - 1);
        Some(self.values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMESTAMPS: Level = Level { timestamps: true, tensors: false };

    fn started(rate: u32, count: Option<u32>) -> Store {
        Store::new(Values { level: TIMESTAMPS, rate, count, ..Values::default() })
    }

    /// Which of so many requests for the model are traced, counted from 1.
    fn traced(store: &Store, model: &str, requests: u32) -> Vec<u32> {
        (1..=requests).filter(|_| store.sample(model, false).is_some()).collect()
    }

    #[test]
    fn every_nth_request_is_traced_until_the_count_is_used_up() {
        assert_eq!(traced(&started(3, None), "m", 10), [3, 6, 9]);
        let store = started(2, Some(2));
        assert_eq!(traced(&store, "m", 10), [2, 4]);
        assert_eq!(store.values(None).count, Some(0));
        assert_eq!(traced(&Store::new(Values { rate: 1, ..Values::default() }), "m", 3), [0; 0]);
    }

    #[test]
    fn a_forced_request_is_traced_at_every_rate_but_not_when_tracing_is_off() {
        let store = started(0, None);
        assert_eq!(traced(&store, "m", 5), [0; 0]);
        assert!(store.sample("m", true).is_some());
        assert!(Store::new(Values::default()).sample("m", true).is_none());
    }

    #[test]
    fn a_models_settings_win_over_the_servers_and_follow_it_where_it_has_none() {
        let mut store = started(1, None);
        store.change(Some("m"), Change { rate: Update::Set(5), ..Change::default() });
        store.change(None, Change { rate: Update::Set(7), log_frequency: Update::Set(9), ..Change::default() });
        let (model, other) = (store.values(Some("m")), store.values(Some("n")));
        assert_eq!((model.rate, model.log_frequency, model.level), (5, 9, TIMESTAMPS));
        assert_eq!((other.rate, other.log_frequency), (7, 9));
        store.change(Some("m"), Change { rate: Update::Clear, ..Change::default() });
        assert_eq!(store.values(Some("m")).rate, 7);
        assert!(store.models.is_empty());
    }

    #[test]
    fn the_server_takes_back_what_it_was_started_with() {
        let mut store = started(4, Some(6));
        store.change(None, Change { rate: Update::Set(1), count: Update::Set(Some(3)), ..Change::default() });
        assert_eq!((store.values(None).rate, store.values(None).count), (1, Some(3)));
        store.change(None, Change { rate: Update::Clear, count: Update::Clear, ..Change::default() });
        assert_eq!((store.values(None).rate, store.values(None).count), (4, Some(6)));
    }

    #[test]
    fn what_is_left_of_a_count_outlives_other_changes() {
        let mut store = started(1, Some(3));
        assert!(store.sample("m", false).is_some());
        store.change(None, Change { log_frequency: Update::Set(1), ..Change::default() });
        assert_eq!(store.values(None).count, Some(2));
        store.change(Some("m"), Change { count: Update::Set(Some(5)), ..Change::default() });
        assert!(store.sample("m", false).is_some());
        store.change(None, Change { log_frequency: Update::Set(2), ..Change::default() });
        assert_eq!((store.values(Some("m")).count, store.values(None).count), (Some(4), Some(2)));
    }

    #[test]
    fn one_model_can_be_traced_alone() {
        let mut store = Store::new(Values { rate: 1, ..Values::default() });
        assert!(!store.is_on());
        store.change(Some("m"), Change { level: Update::Set(TIMESTAMPS), ..Change::default() });
        assert!(store.is_on());
        assert_eq!((traced(&store, "m", 1), traced(&store, "n", 1)), (vec![1], vec![]));
        store.change(Some("m"), Change { level: Update::Clear, ..Change::default() });
        assert!(!store.is_on());
    }
}
