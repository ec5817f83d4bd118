//! Restricted groups: which calls need a secret in their headers, the same for both protocols.
//!
//! A category of calls is in one group at most, and a group has one header and one secret. Begin with [`Restrictions`].

use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, HeaderName};
use subtle::ConstantTimeEq as _;

use super::category::Category;

/// What a group's secret is; printing it does not print it, and comparing it takes the same time for all that is wrong.
#[derive(Clone)]
pub struct Secret(Arc<[u8]>);

impl Secret {
    /// The secret of this text.
    pub fn new(text: &str) -> Self {
        Self(text.as_bytes().into())
    }

    fn is(&self, told: &[u8]) -> bool {
        self.0.ct_eq(told).into()
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.is(&other.0)
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Categories of calls that need a secret, and in which header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The categories.
    pub categories: Vec<Category>,
    /// The header's name as it was written, for messages.
    pub name: String,
    /// The header.
    pub header: HeaderName,
    /// What it must hold.
    pub secret: Secret,
}

/// All groups of one protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restrictions {
    groups: Arc<[Group]>,
}

/// A call lacks the secret, which the header of this name should hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(pub String);

impl Restrictions {
    /// The restrictions of `groups`, none of which shares a category with another.
    pub fn new(groups: Vec<Group>) -> Self {
        Self { groups: groups.into() }
    }

    /// Whether nothing is restricted.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Whether calls of `category` need a secret.
    pub fn restrict(&self, category: Category) -> bool {
        self.group(category).is_some()
    }

    /// Checks a call of `category` with these headers.
    ///
    /// # Errors
    /// [`Refusal`] if it needs a secret that it does not have.
    pub fn check(&self, category: Category, headers: &HeaderMap) -> Result<(), Refusal> {
        let Some(group) = self.group(category) else { return Ok(()) };
        let told = headers.get(&group.header);
        if told.is_some_and(|told| group.secret.is(told.as_bytes())) {
            Ok(())
        } else {
            Err(Refusal(group.name.clone()))
        }
    }

    fn group(&self, category: Category) -> Option<&Group> {
        self.groups.iter().find(|group| group.categories.contains(&category))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn restrictions() -> Restrictions {
        let group = |categories: &[Category], name: &str, secret| Group {
            categories: categories.to_vec(),
            name: name.to_owned(),
            header: name.parse().expect("a header's name"),
            secret: Secret::new(secret),
        };
        Restrictions::new(vec![
            group(&[Category::Inference, Category::Trace], "Infer-Key", "one"),
            group(&[Category::Logging], "log-key", "two"),
        ])
    }

    #[test]
    fn each_category_needs_the_secret_of_its_group_and_no_other() {
        let restrictions = restrictions();
        for category in Category::ALL {
            let needed = match category {
                Category::Inference | Category::Trace => Some(("Infer-Key", "one")),
                Category::Logging => Some(("log-key", "two")),
                _ => None,
            };
            for name in ["Infer-Key", "log-key", "other"] {
                for told in ["one", "two", "on", "onee", ""] {
                    let header = |name: &str| name.parse::<HeaderName>().expect("a name");
                    let headers = HeaderMap::from_iter([(header(name), told.parse().expect("a value"))]);
                    let expected = match needed {
                        Some(right) if right != (name, told) => Err(Refusal(right.0.to_owned())),
                        _ => Ok(()),
                    };
                    assert_eq!(restrictions.check(category, &headers), expected, "{category:?} {name} {told}");
                }
            }
            let expected = needed.map_or(Ok(()), |(name, _)| Err(Refusal(name.to_owned())));
            assert_eq!(restrictions.check(category, &HeaderMap::new()), expected);
        }
    }

    #[test]
    fn a_secret_is_not_printed() {
        let printed = format!("{:?}", restrictions());
        assert!(printed.contains("Infer-Key") && !printed.contains("one") && !printed.contains("two"), "{printed}");
        assert!(!printed.contains("111"), "{printed}");
    }
}
