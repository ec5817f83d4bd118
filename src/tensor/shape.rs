//! Dimensions of a tensor.

use std::fmt;
use std::ops::Deref;

use smallvec::SmallVec;

/// The dimensions of a tensor, outermost first; empty for a scalar.
///
/// Six dimensions are held without allocation.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Shape(SmallVec<[i64; 6]>);

impl Shape {
    /// A shape from its dimensions.
    pub fn new(dims: &[i64]) -> Self {
        Self(SmallVec::from_slice(dims))
    }

    /// This shape with one more outermost dimension.
    #[must_use]
    pub fn with_rows(&self, rows: i64) -> Self {
        let mut dims = SmallVec::with_capacity(self.len() + 1);
        dims.push(rows);
        dims.extend_from_slice(self);
        Self(dims)
    }

    /// This shape with its outermost dimension replaced by `rows`; a scalar stays a scalar.
    #[must_use]
    pub fn replace_rows(&self, rows: i64) -> Self {
        let mut dims = self.0.clone();
        if let Some(first) = dims.first_mut() {
            *first = rows;
        }
        Self(dims)
    }

    /// The element count; `None` if a dimension is negative or the product does not fit.
    pub fn elements(&self) -> Option<usize> {
        self.iter().try_fold(1usize, |product, &dim| product.checked_mul(usize::try_from(dim).ok()?))
    }
}

impl Deref for Shape {
    type Target = [i64];

    fn deref(&self) -> &[i64] {
        &self.0
    }
}

impl From<Vec<i64>> for Shape {
    fn from(dims: Vec<i64>) -> Self {
        Self(SmallVec::from_slice(&dims))
    }
}

impl fmt::Display for Shape {
    /// `[2,16]`: the spelling of the reference server's messages, which clients match on.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (index, dim) in self.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            write!(f, "{dim}")?;
        }
        f.write_str("]")
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_overflow_is_none() {
        assert_eq!(Shape::new(&[]).elements(), Some(1));
        assert_eq!(Shape::new(&[2, 0, 3]).elements(), Some(0));
        assert_eq!(Shape::new(&[2, -1]).elements(), None);
        assert_eq!(Shape::new(&[i64::MAX, 4]).elements(), None);
    }
}
