//! How firmly a model is in memory.

/// When a model is in memory, and what makes it leave. A load that lacks memory may take that of models that stand below
/// it here, and of its own kind only if it is on demand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Residency {
    /// Loaded by its first request; leaves when others need the memory, and comes back by its next request.
    OnDemand,
    /// Loaded when it is asked for; leaves for models that are pinned only, and comes back by its next request.
    #[default]
    Resident,
    /// Loaded when it is asked for; leaves only when it is unloaded.
    Pinned,
}

impl Residency {
    /// Each with the word that configurations use.
    pub const WORDS: [(&str, Residency); 3] =
        [("resident", Residency::Resident), ("on_demand", Residency::OnDemand), ("pinned", Residency::Pinned)];

    /// The meaning of a word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(known, _)| *known == word).map(|(_, meant)| *meant)
    }

    /// Whether a load of this kind may take the memory of an idle model of the `other` kind.
    pub fn displaces(self, other: Self) -> bool {
        other < self || (self == Self::OnDemand && other == Self::OnDemand)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_below_leaves_and_what_is_on_demand_for_its_own_kind() {
        use Residency::{OnDemand, Pinned, Resident};
        let displaced = |by: Residency| [OnDemand, Resident, Pinned].map(|other| by.displaces(other));
        assert_eq!(displaced(OnDemand), [true, false, false]);
        assert_eq!(displaced(Resident), [true, false, false]);
        assert_eq!(displaced(Pinned), [true, true, false]);
    }

    #[test]
    fn each_word_has_its_meaning_and_others_have_none() {
        for (word, meant) in Residency::WORDS {
            assert_eq!(Residency::parse(word), Some(meant));
        }
        assert_eq!(Residency::parse("on-demand"), None);
    }
}
