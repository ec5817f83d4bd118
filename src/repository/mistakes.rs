//! What is wrong with a configuration, and where: file, line, column, key, and the nearest valid spelling.
//!
//! Knows nothing of the formats. A [`Mistake`] is one line for a person; [`Mistakes`] is all that was found at once.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// The most mistakes that are kept for one file; what is beyond is only counted.
pub(super) const MISTAKES_MAX: usize = 100;

/// A place in a text file, both counted from 1; columns count characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The line.
    pub line: u32,
    /// The character in the line.
    pub column: u32,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// One thing that is wrong, or, as a warning, suspicious.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The file, the word for an override, or the directory where there is no file.
    pub file: PathBuf,
    /// Where in the file; `None` where there is no text with lines.
    pub position: Option<Position>,
    /// The key's path from the top of the configuration, such as `input[0].dims`; empty for the whole file.
    pub key: String,
    /// What is wrong, for people.
    pub message: String,
    /// The nearest valid spelling, where there is one.
    pub suggestion: Option<String>,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(position) = self.position {
            write!(f, ":{position}")?;
        }
        f.write_str(": ")?;
        if !self.key.is_empty() && !self.message.contains(&format!("'{}'", self.key)) {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)?;
        match &self.suggestion {
            Some(suggestion) => write!(f, ", did you mean '{suggestion}'?"),
            None => Ok(()),
        }
    }
}

/// Everything found wrong in one configuration, in the order of the file; displayed one per line.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Mistakes {
    list: Vec<Mistake>,
    beyond: usize,
}

impl Mistakes {
    /// Adds one.
    pub fn push(&mut self, mistake: Mistake) {
        if self.list.len() < MISTAKES_MAX {
            self.list.push(mistake);
        } else {
            self.beyond += 1;
        }
    }

    /// Adds one with what was meant, which is looked for only if it will be kept.
    pub(super) fn push_near(&mut self, mistake: Mistake, suggestion: impl FnOnce() -> Option<String>) {
        let suggestion = if self.is_full() { None } else { suggestion() };
        self.push(Mistake { suggestion, ..mistake });
    }

    /// Adds all of `other`.
    pub fn extend(&mut self, other: Mistakes) {
        self.beyond += other.beyond;
        for mistake in other.list {
            self.push(mistake);
        }
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether no more will be kept, so that looking for more is of no use.
    pub fn is_full(&self) -> bool {
        self.list.len() >= MISTAKES_MAX
    }

    /// How many were found.
    pub fn len(&self) -> usize {
        self.list.len() + self.beyond
    }

    /// Those that were kept.
    pub fn iter(&self) -> impl Iterator<Item = &Mistake> {
        self.list.iter()
    }

    /// Puts them into the order of the file.
    pub fn sort(&mut self) {
        self.list.sort_by_key(|mistake| mistake.position);
    }

    /// Those that were kept, with one in the end, at the top of the file, that tells how many others there are.
    pub(super) fn into_warnings(mut self, positions: &Positions) -> Vec<Mistake> {
        if self.beyond > 0 {
            self.list.push(positions.mistake("", format!("{} more warnings are not shown", self.beyond)));
        }
        self.list
    }

    /// `Ok` if nothing is wrong.
    ///
    /// # Errors
    /// All the mistakes, in the order of the file.
    pub fn into_result<T>(mut self, value: T) -> Result<T, Mistakes> {
        if self.is_empty() {
            return Ok(value);
        }
        self.sort();
        Err(self)
    }
}

impl From<Mistake> for Mistakes {
    fn from(mistake: Mistake) -> Self {
        Self { list: vec![mistake], beyond: 0 }
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.list.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{mistake}")?;
        }
        if self.beyond > 0 {
            write!(f, "\nand {} more", self.beyond)?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

impl From<Mistakes> for Error {
    fn from(mistakes: Mistakes) -> Self {
        Error::invalid(mistakes.to_string())
    }
}

/// What one look at a configuration has found.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// What is wrong.
    pub(super) mistakes: Mistakes,
    /// What is suspicious.
    pub(super) warnings: Mistakes,
}

impl From<Mistake> for Findings {
    fn from(mistake: Mistake) -> Self {
        Self { mistakes: mistake.into(), warnings: Mistakes::default() }
    }
}

/// Which keys a configuration has written, and where.
#[derive(Clone, Debug, Default)]
pub struct Positions {
    file: PathBuf,
    has_lines: bool,
    /// In order, so that what is inside of a key stands together.
    places: BTreeMap<String, Option<Position>>,
}

impl Positions {
    /// Of a text file, whose keys have lines and columns.
    pub(super) fn of_text(file: &Path) -> Self {
        Self { file: file.to_owned(), has_lines: true, places: BTreeMap::new() }
    }

    /// Of something without lines: an override, or no configuration at all.
    pub(super) fn of(file: &Path) -> Self {
        Self { file: file.to_owned(), has_lines: false, places: BTreeMap::new() }
    }

    pub(super) fn insert(&mut self, key: &str, position: Option<Position>) {
        self.places.entry(key.to_owned()).or_insert(position);
    }

    /// Takes back a key and what is inside of it, which is written anew.
    pub(super) fn forget(&mut self, key: &str) {
        let inside = |rest: &str| rest.is_empty() || rest.starts_with(['.', '[']);
        let of_key = |other: &String| other.strip_prefix(key).is_some_and(inside);
        let begin = |other: &&String| other.starts_with(key);
        let from = self.places.range::<str, _>((Bound::Included(key), Bound::Unbounded)).map(|(other, _)| other);
        let old: Vec<String> = from.take_while(begin).filter(|other| of_key(other)).cloned().collect();
        for key in old {
            self.places.remove(&key);
        }
    }

    /// Whether this key was written, rather than filled in.
    pub fn wrote(&self, key: &str) -> bool {
        self.places.contains_key(key)
    }

    /// A mistake at `key`, or at the nearest key around it that was written.
    pub fn mistake(&self, key: impl Into<String>, message: impl Into<String>) -> Mistake {
        let key = key.into();
        Mistake {
            file: self.file.clone(),
            position: self.nearest(&key),
            key,
            message: message.into(),
            suggestion: None,
        }
    }

    fn nearest(&self, key: &str) -> Option<Position> {
        let mut rest = key;
        loop {
            if let Some(position) = self.places.get(rest) {
                return *position;
            }
            let Some(cut) = rest.rfind(['.', '[']) else { break };
            rest = &rest[..cut];
        }
        self.has_lines.then_some(Position { line: 1, column: 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_meant_is_looked_for_only_where_it_will_be_told() {
        let (mut mistakes, mut looked) = (Mistakes::default(), 0);
        let positions = Positions::of(Path::new("c"));
        for _ in 0..MISTAKES_MAX + 10 {
            mistakes.push_near(positions.mistake("k", "unknown"), || {
                looked += 1;
                Some("known".to_owned())
            });
        }
        assert_eq!((looked, mistakes.len()), (MISTAKES_MAX, MISTAKES_MAX + 10));
        assert!(mistakes.iter().all(|mistake| mistake.suggestion.as_deref() == Some("known")));
    }

    #[test]
    fn a_key_is_forgotten_with_what_is_inside_of_it_and_nothing_else() {
        let mut positions = Positions::of(Path::new("c"));
        let keys = ["p", "p[a", "p[a]", "p[a].x", "p[a][0]", "p[a]b]", "p[a]b].x", "p[b]", "q"];
        keys.iter().for_each(|key| positions.insert(key, None));
        positions.forget("p[a]");
        let left: Vec<&str> = keys.into_iter().filter(|key| positions.wrote(key)).collect();
        assert_eq!(left, ["p", "p[a", "p[a]b]", "p[a]b].x", "p[b]", "q"]);
    }
}
