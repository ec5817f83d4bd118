//! Repository agents: what has to be true of a model's files before it is loaded.
//!
//! One is part of the server, the reference server's `checksum`; a configuration that names another is refused when it
//! is read.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use md5::{Digest as _, Md5};

use crate::error::{Error, Result};
use crate::model::schema::ModelRepositoryAgents;
use crate::repository::is_inside;

/// How much of a file is hashed at once.
const CHUNK_BYTES: usize = 1 << 20;

/// Checks the files in a model's directory. Of a configuration that nobody has checked yet: what will be refused there,
/// such as a file elsewhere, is left out here.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] if a file is not there or is another one.
pub(super) fn check(agents: &Option<ModelRepositoryAgents>, directory: &Path) -> Result<()> {
    for (name, digest) in expected(agents) {
        let found = md5_of(&directory.join(name))
            .map_err(|error| Error::invalid(format!("failed to open text file for read {name}: {error}")))?;
        if !digest.eq_ignore_ascii_case(&found) {
            return Err(Error::invalid(format!("Mismatched MD5 hash for file {name}, expect: {digest}, got: {found}")));
        }
    }
    Ok(())
}

/// The files that [`check`] reads, relative to the model's directory.
pub(super) fn files(agents: &Option<ModelRepositoryAgents>) -> Vec<&str> {
    expected(agents).into_iter().map(|(name, _)| name).collect()
}

/// The files that are checked, each with its digest.
fn expected(agents: &Option<ModelRepositoryAgents>) -> Vec<(&str, &str)> {
    let mut expected = Vec::new();
    for agent in agents.iter().flat_map(|agents| &agents.agents) {
        let mut parameters: Vec<_> = agent.parameters.iter().collect();
        parameters.sort();
        for (key, digest) in parameters {
            let name = key.split_once(':').map(|(_, name)| name).filter(|name| is_inside(name));
            expected.extend(name.map(|name| (name, digest.as_str())));
        }
    }
    expected
}

fn md5_of(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let (mut hash, mut chunk) = (Md5::new(), vec![0; CHUNK_BYTES]);
    loop {
        match file.read(&mut chunk)? {
            0 => break,
            read => hash.update(&chunk[..read]),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::schema::model_repository_agents::Agent;

    fn checked(key: &str, digest: &str) -> std::result::Result<(), String> {
        let directory = tempfile::tempdir().expect("there is room");
        std::fs::create_dir(directory.path().join("1")).expect("there is room");
        std::fs::write(directory.path().join("1/model.pt"), "weights").expect("there is room");
        let parameters = [(key.to_owned(), digest.to_owned())].into();
        let agents = ModelRepositoryAgents { agents: vec![Agent { name: "checksum".to_owned(), parameters }] };
        check(&Some(agents), directory.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn only_the_very_file_is_taken() {
        // md5sum's digest of "weights".
        let digest = "63f4f1e9b725370f459720575cd5f953";
        let found = checked("MD5:1/model.pt", "00").expect_err("another digest");
        assert!(found.starts_with("Mismatched MD5 hash for file 1/model.pt, expect: 00, got: "), "{found}");
        let found = found.rsplit(' ').next().expect("the digest stands last").to_owned();
        assert_eq!(checked("MD5:1/model.pt", &found.to_uppercase()), Ok(()));
        assert_eq!(found, digest);
        assert!(checked("md5:2/model.pt", digest).is_err());
        assert_eq!(checked("MD5:../../secret", digest), Ok(()), "nothing is told of what lies elsewhere");
    }
}
