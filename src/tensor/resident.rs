//! Tensors that stay where a backend computed them, and which outputs somebody wants left there.
//!
//! Who asks ([`Keep`]) hopes, and promises nothing: a backend that cannot leave an output where it is gives its bytes, and
//! one that cannot take such an input gets them. So nobody has to know where a tensor is to pass it on.

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::Result;

/// The elements of a tensor in memory of the backend that computed them, dense and in row-major order.
///
/// Nothing writes to them, and dropping the last reference gives the memory back. The backend knows its own by their type.
pub trait Resident: Any + fmt::Debug + Send + Sync {
    /// How many bytes they are.
    fn bytes(&self) -> usize;

    /// The elements in host memory. Blocks while they are copied, where that is another memory.
    ///
    /// # Errors
    /// [`crate::error::Kind::Backend`] if the device fails.
    fn to_host(&self) -> Result<Bytes>;

    /// These ranges of elements: `own` ones in memory of their own, else views that keep all of it.
    ///
    /// # Errors
    /// [`crate::error::Kind::Backend`] if the device fails, or has no room.
    fn parts(&self, elements: &[Range<usize>], own: bool) -> Result<Vec<Arc<dyn Resident>>>;
}

impl PartialEq for dyn Resident {
    /// Whether both are the same memory.
    fn eq(&self, other: &Self) -> bool {
        std::ptr::addr_eq(self, other)
    }
}

/// Which outputs of a model a member of a batch wants left where they are computed, by position; none by default.
///
/// Some are passed on at once, others last: they must not hold on to memory of others, such as the rest of a batch. Only the first [`Keep::OUTPUTS_MAX`] outputs can be kept; what is asked of others has no effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    kept: u64,
    /// Of these, those that last.
    lasting: u64,
    /// Of these, those whose bytes nobody reads.
    unread: u64,
}

impl Keep {
    /// How many outputs can be told apart.
    pub const OUTPUTS_MAX: usize = u64::BITS as usize;

    /// This output, too, to be passed on; its bytes are not read.
    #[must_use]
    pub fn passing(self, output: usize) -> Self {
        self.or(Self { kept: bit(output), lasting: 0, unread: bit(output) })
    }

    /// This output, too, for long; `read` if its bytes are wanted besides.
    #[must_use]
    pub fn lasting(self, output: usize, read: bool) -> Self {
        self.or(Self { kept: bit(output), lasting: bit(output), unread: if read { 0 } else { bit(output) } })
    }

    /// What either keeps.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self { kept: self.kept | other.kept, lasting: self.lasting | other.lasting, unread: self.unread | other.unread }
    }

    /// The same, but the bytes of this output are wanted.
    #[must_use]
    pub fn reading(self, output: usize) -> Self {
        Self { unread: self.unread & !bit(output), ..self }
    }

    /// Whether this output should stay where it is.
    pub fn keeps(self, output: usize) -> bool {
        self.kept & bit(output) != 0
    }

    /// Whether it stays there for long.
    pub fn lasts(self, output: usize) -> bool {
        self.lasting & bit(output) != 0
    }

    /// Whether the bytes of this output are wanted.
    pub fn reads(self, output: usize) -> bool {
        self.unread & bit(output) == 0
    }
}

fn bit(output: usize) -> u64 {
    u32::try_from(output).ok().and_then(|output| 1u64.checked_shl(output)).unwrap_or(0)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Bytes that claim to be elsewhere; one for each element.
    #[derive(Debug)]
    pub struct Elsewhere(pub Bytes);

    impl Resident for Elsewhere {
        fn bytes(&self) -> usize {
            self.0.len()
        }

        fn to_host(&self) -> Result<Bytes> {
            Ok(self.0.clone())
        }

        fn parts(&self, elements: &[Range<usize>], own: bool) -> Result<Vec<Arc<dyn Resident>>> {
            let view = |range: &Range<usize>| self.0.slice(range.clone());
            let bytes = |range| if own { Bytes::copy_from_slice(&view(range)) } else { view(range) };
            let part = |range| Arc::new(Self(bytes(range))) as _;
            Ok(elements.iter().map(part).collect())
        }
    }

    #[test]
    fn outputs_beyond_the_last_that_can_be_kept_are_read() {
        let keep = Keep::default().lasting(0, true).passing(63).passing(64).lasting(usize::MAX, false);
        assert_eq!([0, 1, 63, 64, usize::MAX].map(|output| keep.keeps(output)), [true, false, true, false, false]);
        assert_eq!([0, 1, 63, 64, usize::MAX].map(|output| keep.reads(output)), [true, true, false, true, true]);
    }

    #[test]
    fn what_one_reads_and_another_does_not_is_read_only_if_somebody_says_so() {
        let state = Keep::default().lasting(2, true);
        let step = Keep::default().passing(2);
        assert!(state.or(step).lasts(2) && !step.lasts(2));
        assert!(!state.or(step).reads(2), "the state needs no bytes for itself");
        assert!(state.or(step).reading(2).reads(2) && state.or(step).reading(2).keeps(2));
    }
}
