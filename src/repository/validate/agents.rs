//! Repository agents: which there are, and what they are told.

use super::super::files::is_inside;
use super::super::tree::shorten;
use super::Check;

/// The one agent that is part of the server.
const CHECKSUM: &str = "checksum";
/// The hexadecimal digits of an MD5 digest.
const DIGEST_LEN: usize = 32;

pub(super) fn check(check: &mut Check<'_>) {
    let Some(agents) = &check.config.model_repository_agents else { return };
    for (index, agent) in agents.agents.iter().enumerate() {
        let key = format!("model_repository_agents.agents[{index}]");
        if agent.name != CHECKSUM {
            let message = format!("there is no repository agent '{}', only '{CHECKSUM}'", shorten(&agent.name));
            check.mistake(format!("{key}.name"), message);
            continue;
        }
        let mut parameters: Vec<_> = agent.parameters.iter().collect();
        parameters.sort();
        for (name, digest) in parameters {
            if let Some(message) = mistake(name, digest) {
                check.mistake(format!("{key}.parameters[{name}]"), message);
            }
        }
    }
}

/// What is wrong with one file and its digest.
fn mistake(key: &str, digest: &str) -> Option<String> {
    let Some((algorithm, file)) = key.split_once(':') else {
        return Some(format!("failed to parse key: '{}': expected 'MD5:FILE'", shorten(key)));
    };
    if !algorithm.eq_ignore_ascii_case("md5") {
        return Some(format!("Unsupported checksum algorithm: '{}': expected 'MD5:FILE'", shorten(algorithm)));
    }
    if !is_inside(file) {
        return Some(format!("file '{}' must stay inside the model directory", shorten(file)));
    }
    let is_digest = digest.len() == DIGEST_LEN && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
    (!is_digest).then(|| format!("an MD5 digest has {DIGEST_LEN} hexadecimal digits, got '{}'", shorten(digest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_and_its_digest_are_understood() {
        let digest = "63f4f1e9b725370f459720575cd5f953";
        assert_eq!(mistake("MD5:1/model.pt", digest), None);
        assert_eq!(mistake("md5:config.pbtxt", &digest.to_uppercase()), None);
        for (key, digest) in
            [("1/model.pt", digest), ("SHA1:f", digest), ("MD5:../f", digest), ("MD5:", digest), ("MD5:f", "12")]
        {
            assert!(mistake(key, digest).is_some(), "{key}");
        }
    }
}
