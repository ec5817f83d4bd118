//! Reads `--cache-config`, the reference server's way to set up the response cache: `<cache>,<setting>=<value>`, repeated.
//!
//! Begin with [`read`]. Every mistake is collected.

use std::time::Duration;

use super::Reader;
use crate::engine::CacheSettings;

/// A smaller cache would hold nothing.
const BYTES_MIN: usize = 1024;

/// A longer life is a mistake in the unit: a year.
const TTL_MS_MAX: u64 = 366 * 24 * 3_600_000;

const FLAG: &str = "cache-config";
const OLD_FLAG: &str = "response-cache-byte-size";
const DIRECTORY: &str = "cache-directory";

/// The cache that is asked for; `None` for none.
pub(super) fn read(reader: &mut Reader) -> Option<CacheSettings> {
    let texts = reader.list(FLAG);
    let old = reader.maybe_number(OLD_FLAG);
    if old.is_some() && !texts.is_empty() {
        let origin = reader.typed.origin(OLD_FLAG);
        reader.mistake(&origin, "says the same as --cache-config; give one of them");
    }
    if reader.optional(DIRECTORY).is_some() {
        let origin = reader.typed.origin(DIRECTORY);
        reader.typed.warnings.push(format!("{origin}: has no effect, the response cache is part of this server"));
    }
    let mut size = old.map(|bytes| bytes as usize);
    let mut ttl = None;
    let origin = reader.typed.origin(FLAG);
    for text in &texts {
        if let Err(mistake) = setting(text, &mut size, &mut ttl) {
            reader.mistake(&origin, mistake);
        }
    }
    if !texts.is_empty() && size.is_none() {
        reader.mistake(&origin, "needs a size: local,size=<bytes>");
    }
    let bytes_max = size.filter(|bytes| *bytes > 0)?;
    if bytes_max < BYTES_MIN {
        let origin = if old.is_some() { reader.typed.origin(OLD_FLAG) } else { origin };
        reader.mistake(&origin, format!("a cache of {bytes_max} bytes holds nothing, it needs at least {BYTES_MIN}"));
    }
    Some(CacheSettings { bytes_max, ttl })
}

/// Reads `<cache>,<setting>=<value>`.
fn setting(text: &str, size: &mut Option<usize>, ttl: &mut Option<Duration>) -> Result<(), String> {
    let (cache, setting) = text.split_once(',').unwrap_or((text, ""));
    if cache != "local" {
        return Err(format!("there is no cache '{cache}': local is the only one"));
    }
    match setting.split_once('=') {
        Some(("size", value)) => {
            *size = Some(value.parse().map_err(|_| format!("size '{value}' is not a number of bytes"))?);
        }
        Some(("ttl-ms", value)) => {
            let ms = value.parse().ok().filter(|ms| (1..=TTL_MS_MAX).contains(ms));
            let ms = ms.ok_or_else(|| format!("ttl-ms '{value}' is not a whole number from 1 to {TTL_MS_MAX}"))?;
            *ttl = Some(Duration::from_millis(ms));
        }
        Some((name, _)) => return Err(format!("'{name}' is not a setting of cache local: size or ttl-ms")),
        None => return Err(format!("'{text}' is not <cache>,<setting>=<value>")),
    }
    Ok(())
}
