//! A page of a store's listing, without the keys that no file can have: `object_store` refuses all of a page for one.
//!
//! Reads the text of the answers of S3, Google and Azure as far as it must; what it does not understand stays as it is.

use object_store::path::Path;

/// How an entry begins and ends, and how its name begins: S3's and Google's, Azure's.
const FORMS: [(&str, &str, &str); 2] = [("<Contents>", "</Contents>", "<Key>"), ("<Blob>", "</Blob>", "<Name>")];

/// Whether a request asks for a page of a listing.
pub(super) fn is_asked_by(uri: &http::Uri) -> bool {
    uri.query().is_some_and(|query| query.split('&').any(|part| part == "list-type=2" || part == "comp=list"))
}

/// The page without entries whose keys are no paths, and those keys.
pub(super) fn without_odd_keys(page: &str) -> (String, Vec<String>) {
    let (mut kept, mut odd, mut rest) = (String::with_capacity(page.len()), Vec::new(), page);
    let form = FORMS.into_iter().find(|(begin, ..)| page.contains(begin));
    while let Some((begin, end, name)) = form {
        let Some((before, entry, after)) = cut(rest, begin, end) else { break };
        kept.push_str(before);
        match key(entry, name).filter(|key| !is_path(key)) {
            Some(key) => odd.push(key),
            None => kept.push_str(&rest[before.len()..rest.len() - after.len()]),
        }
        rest = after;
    }
    kept.push_str(rest);
    (kept, odd)
}

/// What stands before, in and behind the first element that begins and ends so.
fn cut<'a>(text: &'a str, begin: &str, end: &str) -> Option<(&'a str, &'a str, &'a str)> {
    let (before, rest) = text.split_once(begin)?;
    let (inside, after) = rest.split_once(end)?;
    Some((before, inside, after))
}

fn key(entry: &str, name: &str) -> Option<String> {
    let (_, rest) = entry.split_once(name)?;
    Some(unescaped(rest.split_once("</")?.0))
}

/// Whether a key is a path that leads to itself; directories end with a slash.
fn is_path(key: &str) -> bool {
    !key.starts_with('/') && Path::parse(key).is_ok()
}

/// The text with its references as the characters that they stand for.
fn unescaped(text: &str) -> String {
    let mut parts = text.split('&');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once(';').and_then(|(name, rest)| Some((character(name)?, rest))) {
            Some((character, rest)) => {
                plain.push(character);
                plain.push_str(rest);
            }
            None => plain.extend(["&", part]),
        }
    }
    plain
}

fn character(name: &str) -> Option<char> {
    match name {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        _ => {
            let digits = name.strip_prefix('#')?;
            let code = match digits.strip_prefix('x') {
                Some(digits) => u32::from_str_radix(digits, 16),
                None => digits.parse(),
            };
            char::from_u32(code.ok()?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_are_no_paths_are_taken_out_and_told() {
        let entry = |key: &str| format!("<Contents><Key>{key}</Key><Size>1</Size></Contents>");
        let page = |keys: &[&str]| {
            let entries: String = keys.iter().map(|key| entry(key)).collect();
            format!("<ListBucketResult>{entries}<IsTruncated>false</IsTruncated></ListBucketResult>")
        };
        let good = ["m/1/", "m/a &amp; b", "m/&#x1F600;", "m/50%"];
        let odd = ["m//1/f", "/m/f", "m/Icon&#13;", "m/Icon&#xD;", "m/Icon\r", "m/../n", "m/./n", "m//"];
        let (kept, told) = without_odd_keys(&page(&[&odd[..3], &good, &odd[3..]].concat()));
        assert_eq!(kept, page(&good));
        assert_eq!(told, ["m//1/f", "/m/f", "m/Icon\r", "m/Icon\r", "m/Icon\r", "m/../n", "m/./n", "m//"]);
    }

    #[test]
    fn azure_s_entries_are_read_too_and_what_is_no_listing_stays() {
        let blob = |name: &str| format!("<Blob><Name>{name}</Name><Properties/></Blob>");
        let page = |blobs: &str| format!("<EnumerationResults><Blobs>{blobs}</Blobs></EnumerationResults>");
        let (kept, told) = without_odd_keys(&page(&(blob("a/f") + &blob("a//f") + &blob("b/f"))));
        assert_eq!((kept, told), (page(&(blob("a/f") + &blob("b/f"))), vec!["a//f".to_owned()]));
        for other in ["", "no &XML;", "<Contents><Key>a//f", "<Contents></Contents>", "<Blob><Name>&#;&x</Name></Blob>"]
        {
            assert_eq!(without_odd_keys(other), (other.to_owned(), Vec::new()));
        }
    }

    #[test]
    fn only_requests_for_listings_are_meant() {
        let is_asked = |uri: &str| is_asked_by(&uri.parse().expect("a URI"));
        assert!(is_asked("http://s/b?list-type=2&prefix=m%2F") && is_asked("https://s/c?restype=container&comp=list"));
        assert!(!is_asked("http://s/b/list-type=2") && !is_asked("http://s/b?prefix=list-type%3D2"));
    }
}
