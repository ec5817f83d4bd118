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

    /// This shape with its one -1, if any, replaced such that it holds `elements`; `None` if nothing does.
    pub fn resolved(&self, elements: usize) -> Option<Self> {
        let known = Self::from(self.iter().copied().filter(|&dim| dim >= 0).collect::<Vec<_>>()).elements()?;
        let free = self.iter().filter(|&&dim| dim < 0).count();
        match free {
            0 => (known == elements).then(|| self.clone()),
            1 if known > 0 && elements.is_multiple_of(known) => {
                let missing = i64::try_from(elements / known).ok()?;
                let dims: Vec<i64> = self.iter().map(|&dim| if dim < 0 { missing } else { dim }).collect();
                Some(dims.into())
            }
            _ => None,
        }
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

    #[test]
    fn one_free_dimension_is_found_from_the_elements() {
        assert_eq!(Shape::new(&[2, -1]).resolved(6), Some(Shape::new(&[2, 3])));
        assert_eq!(Shape::new(&[2, -1]).resolved(7), None);
        assert_eq!(Shape::new(&[-1, -1]).resolved(6), None);
        assert_eq!(Shape::new(&[2, 3]).resolved(6), Some(Shape::new(&[2, 3])));
        assert_eq!(Shape::new(&[2, 3]).resolved(5), None);
        assert_eq!(Shape::new(&[0, -1]).resolved(0), None);
    }
}
