//! Which of the versions that are there a model serves. Pure.

use crate::error::{Error, Result};
use crate::model::Version;
use crate::model::schema::ModelVersionPolicy;
use crate::model::schema::model_version_policy::PolicyChoice;

/// The versions to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selected {
    /// Ascending, at least one.
    pub versions: Vec<Version>,
    /// Versions that the policy asks for and that do not exist.
    pub missing: Vec<i64>,
}

/// The versions of `present` (ascending) that `policy` serves; no policy means the latest one.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] if none is left; `model` names the model in the message.
pub fn select(model: &str, policy: Option<&ModelVersionPolicy>, present: &[Version]) -> Result<Selected> {
    let mut missing = Vec::new();
    let versions = match policy.and_then(|policy| policy.policy_choice.as_ref()) {
        None => latest(present, 1),
        Some(PolicyChoice::Latest(policy)) => {
            latest(present, usize::try_from(policy.num_versions).unwrap_or(usize::MAX).max(1))
        }
        Some(PolicyChoice::All(_)) => present.to_vec(),
        Some(PolicyChoice::Specific(policy)) => {
            let exists = |wanted: &i64| Version::try_from(*wanted).is_ok_and(|wanted| present.contains(&wanted));
            missing.extend(policy.versions.iter().filter(|wanted| !exists(wanted)));
            let wanted =
                |version: &Version| policy.versions.iter().any(|wanted| Version::try_from(*wanted) == Ok(*version));
            present.iter().copied().filter(wanted).collect()
        }
    };
    if versions.is_empty() {
        return Err(Error::invalid(format!(
            "at least one version must be available under the version policy of model '{model}'"
        )));
    }
    Ok(Selected { versions, missing })
}

fn latest(present: &[Version], count: usize) -> Vec<Version> {
    present[present.len().saturating_sub(count)..].to_vec()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::schema::model_version_policy::{All, Latest, Specific};

    fn policy(choice: PolicyChoice) -> ModelVersionPolicy {
        ModelVersionPolicy { policy_choice: Some(choice) }
    }

    fn present() -> impl Strategy<Value = Vec<Version>> {
        proptest::collection::btree_set(1u64..20, 0..8).prop_map(|set| set.into_iter().collect())
    }

    #[test]
    fn no_policy_serves_the_latest() {
        assert_eq!(select("m", None, &[1, 2, 10]).map(|s| s.versions), Ok(vec![10]));
    }

    #[test]
    fn no_version_left_is_an_error_that_names_the_model() {
        let error = select("m", None, &[]).expect_err("nothing is present");
        assert_eq!(error.message(), "at least one version must be available under the version policy of model 'm'");
    }

    #[test]
    fn a_missing_specific_version_is_told_and_not_fatal() {
        let policy = policy(PolicyChoice::Specific(Specific { versions: vec![7, 1, -3] }));
        let selected = select("m", Some(&policy), &[1, 2]).expect("version 1 is there");
        assert_eq!(selected, Selected { versions: vec![1], missing: vec![7, -3] });
    }

    proptest! {
        #[test]
        fn latest_is_the_upper_end_of_what_is_present(present in present(), count in 1u32..10) {
            let policy = policy(PolicyChoice::Latest(Latest { num_versions: count }));
            match select("m", Some(&policy), &present) {
                Err(_) => prop_assert!(present.is_empty()),
                Ok(selected) => {
                    prop_assert_eq!(selected.versions.len(), present.len().min(count as usize));
                    prop_assert!(present.ends_with(&selected.versions));
                }
            }
        }

        #[test]
        fn all_is_all(present in present()) {
            let selected = select("m", Some(&policy(PolicyChoice::All(All {}))), &present);
            prop_assert_eq!(selected.ok().map(|s| s.versions).unwrap_or_default(), present);
        }

        #[test]
        fn specific_splits_what_is_wanted_into_served_and_missing(present in present(), wanted in present()) {
            let versions: Vec<i64> = wanted.iter().map(|v| i64::try_from(*v).expect("small")).collect();
            let policy = policy(PolicyChoice::Specific(Specific { versions }));
            if let Ok(selected) = select("m", Some(&policy), &present) {
                prop_assert_eq!(selected.versions.len() + selected.missing.len(), wanted.len());
                prop_assert!(selected.versions.iter().all(|v| present.contains(v) && wanted.contains(v)));
                prop_assert!(selected.versions.is_sorted());
            }
        }
    }
}
