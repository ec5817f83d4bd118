//! Whether this machine's processor has the instructions that a package's code was compiled to: it would end the process
//! with the first that is not there.

use std::fs;

use crate::error::{Error, Result};

/// The builder's words for what a package uses, and what Linux calls the same.
const FEATURES: [(&str, &[&str]); 5] = [
    ("INVALID_VEC_ISA", &[]),
    ("AVX2", &["avx2", "fma"]),
    ("AVX512", &["avx512f", "avx512dq", "avx512bw", "avx512vl", "fma"]),
    ("AVX512_VNNI", &["avx512_vnni"]),
    ("AMX_TILE", &["amx_tile"]),
];

/// Holds a package's instruction sets, such as `AVX512 AVX512_VNNI`, against this machine.
///
/// # Errors
/// If one is not there, or not known.
pub fn check(instructions: &str) -> Result<()> {
    let description = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = description.lines().find_map(|line| line.strip_prefix("flags")).unwrap_or_default();
    match missing(instructions, flags) {
        None => Ok(()),
        Some(word) => Err(Error::invalid(format!(
            "the package's code needs {word}, which this processor does not have: build it on a machine like this one"
        ))),
    }
}

/// The first word of `instructions` that is not among a processor's flags.
fn missing<'a>(instructions: &'a str, flags: &str) -> Option<&'a str> {
    instructions.split_whitespace().find(|word| {
        let known = FEATURES.iter().find(|(known, _)| known == word);
        !known.is_some_and(|(_, features)| {
            features.iter().all(|feature| flags.split_whitespace().any(|flag| flag == *feature))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_processor_has_not_is_named() {
        let flags = "\t\t: fpu avx avx2 fma avx512f avx512dq avx512bw avx512vl";
        assert_eq!(missing("AVX512", flags), None);
        assert_eq!(missing("AVX2", "avx2 fma"), None);
        assert_eq!(missing("AVX2", "avx2x fma"), Some("AVX2"));
        assert_eq!(missing("AVX512 AVX512_VNNI", flags), Some("AVX512_VNNI"));
        assert_eq!(missing("AVX1024", flags), Some("AVX1024"));
        assert_eq!(missing("INVALID_VEC_ISA", ""), None);
        assert_eq!(missing("", ""), None);
    }

    #[test]
    fn this_machine_has_no_instructions_of_the_future() {
        assert!(check("").is_ok());
        assert!(check("AVX1024").expect_err("nobody has it").message().contains("needs AVX1024"));
    }
}
