//! Which versions can go on as they are when their model is loaded anew. Pure.

use std::collections::BTreeSet;

use super::models::Origin;
use crate::model::{Version, schema};

/// The versions of `served` that `after` serves with the same files and a configuration that needs no other copy.
///
/// Only the instances and the version policy may differ; files outside of the versions are read by all of them.
pub fn kept(
    before: &Origin,
    after: &Origin,
    served: impl Iterator<Item = Version>,
    wanted: &BTreeSet<Version>,
) -> BTreeSet<Version> {
    if before.files_overridden || after.files_overridden || !before.stamp.same_common_files(&after.stamp) {
        return BTreeSet::new();
    }
    if comparable(&before.config.schema) != comparable(&after.config.schema) {
        return BTreeSet::new();
    }
    served.filter(|version| wanted.contains(version) && before.stamp.same_version(&after.stamp, *version)).collect()
}

/// The configuration without what can be changed while a version is served.
fn comparable(schema: &schema::ModelConfig) -> schema::ModelConfig {
    schema::ModelConfig { instance_group: Vec::new(), version_policy: None, ..schema.clone() }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::model::ModelConfig;
    use crate::repository::look;

    /// Writes these versions, each with a file of so many bytes.
    fn write(root: &Path, versions: &[(Version, usize)]) {
        for (version, bytes) in versions {
            let directory = root.join(version.to_string());
            fs::create_dir_all(&directory).expect("there is room");
            fs::write(directory.join("model.pt"), vec![0; *bytes]).expect("there is room");
        }
    }

    /// The model that is there, with a configuration as said.
    fn origin_of(root: &Path, change: impl FnOnce(&mut schema::ModelConfig)) -> Origin {
        let mut schema = schema::ModelConfig { name: "m".to_owned(), max_batch_size: 4, ..Default::default() };
        change(&mut schema);
        let config = ModelConfig { schema: Arc::new(schema), ..ModelConfig::new("m", "identity") };
        let stamp = look("m", root, &mut Vec::new()).expect("it is there").stamp;
        Origin { stamp, config: Arc::new(config), config_overridden: false, files_overridden: false }
    }

    fn group(count: i32) -> impl FnOnce(&mut schema::ModelConfig) {
        move |schema| schema.instance_group.push(schema::ModelInstanceGroup { count, ..Default::default() })
    }

    const NONE: [Version; 0] = [];

    fn kept_of(before: &Origin, after: &Origin, wanted: &[Version]) -> Vec<Version> {
        kept(before, after, [1, 2, 3].into_iter(), &wanted.iter().copied().collect()).into_iter().collect()
    }

    #[test]
    fn instances_and_version_policy_change_in_place_and_nothing_else_does() {
        let root = tempfile::tempdir().expect("there is room");
        write(root.path(), &[(1, 1), (2, 1), (3, 1)]);
        let before = origin_of(root.path(), group(1));
        assert_eq!(kept_of(&before, &origin_of(root.path(), group(4)), &[2, 3]), [2, 3]);
        assert_eq!(kept_of(&before, &origin_of(root.path(), |schema| schema.max_batch_size = 8), &[2, 3]), NONE);
        let overridden = Origin { files_overridden: true, ..before.clone() };
        assert_eq!(kept_of(&overridden, &before, &[1]), NONE);
        assert_eq!(kept_of(&before, &overridden, &[1]), NONE);
    }

    #[test]
    fn a_changed_file_is_read_again_by_those_that_read_it() {
        let root = tempfile::tempdir().expect("there is room");
        write(root.path(), &[(1, 1), (2, 1), (3, 1)]);
        let before = origin_of(root.path(), |_| {});
        fs::write(root.path().join("2/model.pt"), "other").expect("there is room");
        fs::write(root.path().join("config.pbtxt"), "# a remark").expect("there is room");
        assert_eq!(kept_of(&before, &origin_of(root.path(), |_| {}), &[1, 2, 3]), [1, 3]);
        fs::write(root.path().join("labels.txt"), "abc").expect("there is room");
        assert_eq!(kept_of(&before, &origin_of(root.path(), |_| {}), &[1, 2, 3]), NONE);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

        #[test]
        fn exactly_what_is_served_and_wanted_and_the_same_is_kept(
            served in versions(),
            wanted in versions(),
            changed in versions(),
            gone in versions(),
        ) {
            let root = tempfile::tempdir().expect("there is room");
            write(root.path(), &(1..=VERSIONS).map(|version| (version, 1)).collect::<Vec<_>>());
            let before = origin_of(root.path(), |_| {});
            write(root.path(), &changed.iter().map(|version| (*version, 2)).collect::<Vec<_>>());
            for version in &gone {
                fs::remove_dir_all(root.path().join(version.to_string())).expect("it is there");
            }
            let after = origin_of(root.path(), |_| {});
            let expected = &(&(&served & &wanted) - &changed) - &gone;
            prop_assert_eq!(kept(&before, &after, served.into_iter(), &wanted), expected);
        }
    }

    /// More than one digit, so that names begin with other names.
    const VERSIONS: Version = 12;

    fn versions() -> impl Strategy<Value = BTreeSet<Version>> {
        proptest::collection::btree_set(1..=VERSIONS, 0..8)
    }
}
