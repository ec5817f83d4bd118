//! What a store says about an object's contents, and whether what arrived agrees. Always counts SHA-256, the cache's own.

use std::fmt::Write as _;
use std::io::{self, Read};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use crc_fast::{CrcAlgorithm, Digest as Crc};
use http::HeaderMap;
use md5::{Digest as _, Md5};
use ring::digest::{Context, SHA256};

use super::place::Store;

/// Bytes that are read at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// A checksum by a store's account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    Md5(Vec<u8>),
    Crc32c(Vec<u8>),
    Sha256(Vec<u8>),
    /// An ETag that has the form of an MD5: most stores that speak S3 mean one, and none has to.
    PerhapsMd5(Vec<u8>),
}

/// The checksums that a response's headers carry.
pub(super) fn claims(store: Store, headers: &HeaderMap) -> Vec<Claim> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let decoded = |text: &str| BASE64.decode(text.trim()).ok();
    let mut claims = Vec::new();
    claims.extend(text("content-md5").and_then(decoded).map(Claim::Md5));
    match store {
        Store::S3 => {
            claims.extend(text("x-amz-checksum-sha256").and_then(decoded).map(Claim::Sha256));
            claims.extend(text("x-amz-checksum-crc32c").and_then(decoded).map(Claim::Crc32c));
            let encrypted = text("x-amz-server-side-encryption").is_some_and(|how| how != "AES256")
                || text("x-amz-server-side-encryption-customer-algorithm").is_some();
            if !encrypted {
                claims.extend(text("etag").and_then(|tag| unhex(tag.trim_matches('"'))).map(Claim::PerhapsMd5));
            }
        }
        Store::Gs => {
            let listed = headers.get_all("x-goog-hash").iter().filter_map(|value| value.to_str().ok());
            for hash in listed.flat_map(|value| value.split(',')) {
                match hash.trim().split_once('=') {
                    Some(("md5", value)) => claims.extend(decoded(value).map(Claim::Md5)),
                    Some(("crc32c", value)) => claims.extend(decoded(value).map(Claim::Crc32c)),
                    _ => {}
                }
            }
        }
        Store::As => {}
    }
    claims
}

/// Counts the checksums of what passes by.
pub(super) struct Sums {
    sha256: Context,
    md5: Option<Md5>,
    crc32c: Option<Crc>,
    claims: Vec<Claim>,
}

/// What came out.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing that the store said is wrong.
    Agrees,
    /// Only the ETag disagrees, which may not be an MD5 at all.
    EtagDisagrees,
    /// This checksum of the store's is another.
    Disagrees(&'static str),
}

impl Sums {
    pub(super) fn new(claims: Vec<Claim>) -> Self {
        let md5 = claims.iter().any(|claim| matches!(claim, Claim::Md5(_) | Claim::PerhapsMd5(_)));
        let crc32c = claims.iter().any(|claim| matches!(claim, Claim::Crc32c(_)));
        Self {
            sha256: Context::new(&SHA256),
            md5: md5.then(Md5::new),
            crc32c: crc32c.then(|| Crc::new(CrcAlgorithm::Crc32Iscsi)),
            claims,
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        if let Some(md5) = &mut self.md5 {
            md5.update(bytes);
        }
        if let Some(crc) = &mut self.crc32c {
            crc.update(bytes);
        }
    }

    /// The SHA-256 in hexadecimal digits, and whether the store's checksums agree.
    pub(super) fn finish(self) -> (String, Verdict) {
        let sha256 = self.sha256.finish();
        let md5 = self.md5.map(|md5| md5.finalize().to_vec()).unwrap_or_default();
        let crc32c = self.crc32c.map(|crc| (crc.finalize() as u32).to_be_bytes().to_vec()).unwrap_or_default();
        let mut verdict = Verdict::Agrees;
        for claim in self.claims {
            match claim {
                Claim::Md5(expected) if expected != md5 => return (hex(sha256.as_ref()), Verdict::Disagrees("MD5")),
                Claim::Crc32c(expected) if expected != crc32c => {
                    return (hex(sha256.as_ref()), Verdict::Disagrees("CRC32C"));
                }
                Claim::Sha256(expected) if expected != sha256.as_ref() => {
                    return (hex(sha256.as_ref()), Verdict::Disagrees("SHA-256"));
                }
                Claim::PerhapsMd5(expected) if expected != md5 => verdict = Verdict::EtagDisagrees,
                Claim::Md5(_) | Claim::Crc32c(_) | Claim::Sha256(_) | Claim::PerhapsMd5(_) => {}
            }
        }
        (hex(sha256.as_ref()), verdict)
    }
}

/// The SHA-256 of everything that `from` still holds, in hexadecimal digits.
pub(super) fn sha256(mut from: impl Read) -> io::Result<String> {
    let mut sums = Sums::new(Vec::new());
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match from.read(&mut chunk)? {
            0 => return Ok(sums.finish().0),
            read => sums.update(&chunk[..read]),
        }
    }
}

/// `bytes` in hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The 16 bytes of 32 hexadecimal digits.
fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    digits.then(|| (0..32).step_by(2).filter_map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect())
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    const HELLO_SHA256: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    fn verdict(store: Store, pairs: &[(&'static str, &'static str)], contents: &str) -> Verdict {
        let mut sums = Sums::new(claims(store, &headers(pairs)));
        let (one, other) = contents.split_at(2);
        sums.update(one.as_bytes());
        sums.update(other.as_bytes());
        sums.finish().1
    }

    #[test]
    fn each_store_s_checksums_are_found_and_held_against_the_contents() {
        let hello = [
            (Store::S3, ("content-md5", "XUFAKrxLKna5cZ2REBfFkg==")),
            (Store::S3, ("x-amz-checksum-sha256", "LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=")),
            (Store::S3, ("x-amz-checksum-crc32c", "mnG7TA==")),
            (Store::Gs, ("x-goog-hash", "crc32c=mnG7TA==,md5=XUFAKrxLKna5cZ2REBfFkg==")),
            (Store::As, ("content-md5", "XUFAKrxLKna5cZ2REBfFkg==")),
        ];
        for (store, header) in hello {
            assert_eq!(verdict(store, &[header], "hello"), Verdict::Agrees, "{header:?}");
            assert!(matches!(verdict(store, &[header], "hellO"), Verdict::Disagrees(_)), "{header:?}");
        }
    }

    #[test]
    fn an_etag_is_only_perhaps_a_checksum() {
        let tag = ("etag", "\"5d41402abc4b2a76b9719d911017c592\"");
        assert_eq!(verdict(Store::S3, &[tag], "hello"), Verdict::Agrees);
        assert_eq!(verdict(Store::S3, &[tag], "hellO"), Verdict::EtagDisagrees);
        let encrypted = ("x-amz-server-side-encryption", "aws:kms");
        assert_eq!(verdict(Store::S3, &[tag, encrypted], "hellO"), Verdict::Agrees);
        assert_eq!(verdict(Store::S3, &[("etag", "\"5d41402abc4b2a76b9719d911017c592-2\"")], "hellO"), Verdict::Agrees);
        assert_eq!(verdict(Store::Gs, &[tag], "hellO"), Verdict::Agrees);
    }

    #[test]
    fn the_cache_s_own_checksum_is_sha256() {
        assert_eq!(sha256(&b"hello"[..]).expect("memory can be read"), HELLO_SHA256);
    }
}
