//! Reads `--memory-limit`, how much memory models may hold on each device, `--request-memory-limit`, how much requests
//! may, and where weights go that leave the host.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::Reader;
use crate::engine::{Device, MemoryLimit, SpillSettings};

const FLAG: &str = "memory-limit";

/// The factors of the suffixes: decimal ones as people write them, binary ones as machines have them.
const UNITS: [(&str, u64); 6] =
    [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("KB", 1_000), ("MB", 1_000_000), ("GB", 1_000_000_000)];

/// The limits by device.
pub(super) fn read(reader: &mut Reader) -> BTreeMap<Device, MemoryLimit> {
    let mut limits = BTreeMap::new();
    for (device, limit) in reader.each(FLAG, device_and_limit) {
        if limits.insert(device, limit).is_some() {
            let origin = reader.typed.origin(FLAG);
            reader.mistake(&origin, format!("the limit of {device} is given twice"));
        }
    }
    limits
}

/// How much memory requests may hold together, if that is said.
pub(super) fn requests(reader: &mut Reader) -> Option<MemoryLimit> {
    let text = reader.optional("request-memory-limit")?;
    let limit = limit(&text).filter(|limit| *limit != MemoryLimit::Bytes(0));
    if limit.is_none() {
        let origin = reader.typed.origin("request-memory-limit");
        reader.mistake(&origin, format!("'{text}' is not BYTES or FRACTION above 0, such as 2GB or 0.1"));
    }
    limit
}

/// Where weights go that leave the host, if they may go anywhere.
pub(super) fn spill(reader: &mut Reader) -> Option<SpillSettings> {
    let bytes_max = reader.number("memory-spill-bytes");
    let directory = reader.optional("memory-spill-directory").map(PathBuf::from)?;
    if !directory.is_dir() {
        let origin = reader.typed.origin("memory-spill-directory");
        reader.mistake(&origin, format!("'{}' is not a directory", directory.display()));
    }
    Some(SpillSettings { directory, bytes_max })
}

/// `DEVICE:AMOUNT`; the device itself may have a colon in it.
fn device_and_limit(text: &str) -> Result<(Device, MemoryLimit), String> {
    let form = || "is not DEVICE:BYTES or DEVICE:FRACTION, such as host:8GB, 0:0.9 or cuda:0:20GiB".to_owned();
    let (place, amount) = text.rsplit_once(':').ok_or_else(form)?;
    let device = match place {
        "host" | "cpu" => Device::Cpu,
        _ => Device::Cuda(place.strip_prefix("cuda:").unwrap_or(place).parse().map_err(|_| form())?),
    };
    Ok((device, limit(amount).ok_or_else(form)?))
}

/// A whole number of bytes, perhaps with a unit, or a fraction, which has a point.
fn limit(text: &str) -> Option<MemoryLimit> {
    let ends = |unit: &str| text.len().checked_sub(unit.len()).filter(|at| text.is_char_boundary(*at));
    let unit = UNITS.iter().find_map(|(unit, factor)| {
        let (number, suffix) = text.split_at(ends(unit)?);
        suffix.eq_ignore_ascii_case(unit).then_some((number, *factor))
    });
    let (number, factor) = unit.unwrap_or((text, 1));
    if unit.is_none() && text.contains('.') {
        let fraction: f64 = text.parse().ok()?;
        return (fraction > 0.0 && fraction <= 1.0).then_some(MemoryLimit::Fraction(fraction));
    }
    number.parse::<u64>().ok()?.checked_mul(factor).map(MemoryLimit::Bytes)
}

#[cfg(test)]
mod tests {
    use super::super::typed::Environment;
    use super::super::{Config, Mistakes};
    use super::*;

    fn config(line: &str) -> Result<Config, Vec<String>> {
        let root = tempfile::tempdir().expect("a temporary directory");
        let mut args = vec![format!("--model-repository={}", root.path().display())];
        args.extend(line.split_whitespace().map(str::to_owned));
        Config::read(&args, &Environment::new(), None).map_err(|Mistakes(mistakes)| mistakes)
    }

    fn read(line: &str) -> Result<BTreeMap<Device, MemoryLimit>, Vec<String>> {
        config(line).map(|config| config.repository.memory_limits)
    }

    #[test]
    fn weights_leave_the_host_for_a_directory_that_is_there_and_for_none_by_default() {
        assert_eq!(config("--memory-spill-bytes=5").expect("valid").repository.spill, None);
        let place = tempfile::tempdir().expect("a temporary directory");
        let directory = place.path().to_owned();
        let flag = format!("--memory-spill-directory={}", directory.display());
        let spill = config(&format!("{flag} --memory-spill-bytes=5")).expect("valid").repository.spill;
        assert_eq!(spill, Some(SpillSettings { directory, bytes_max: 5 }));
        drop(place);
        let mistakes = config(&flag).expect_err("it is gone");
        assert!(mistakes[0].starts_with("--memory-spill-directory: ") && mistakes[0].ends_with("is not a directory"));
    }

    #[test]
    fn each_device_has_bytes_or_a_fraction() {
        assert!(read("").expect("valid").is_empty());
        let line = "--memory-limit=host:8GB --memory-limit=0:0.9 --memory-limit=cuda:1:20gib --memory-limit=2:1234";
        let limits = read(line).expect("valid");
        assert_eq!(limits[&Device::Cpu], MemoryLimit::Bytes(8_000_000_000));
        assert_eq!(limits[&Device::Cuda(0)], MemoryLimit::Fraction(0.9));
        assert_eq!(limits[&Device::Cuda(1)], MemoryLimit::Bytes(20 << 30));
        assert_eq!(limits[&Device::Cuda(2)], MemoryLimit::Bytes(1234));
    }

    #[test]
    fn requests_have_bytes_or_a_fraction_of_the_host() {
        let read = |line: &str| config(line).map(|config| config.request_memory);
        assert_eq!(read(""), Ok(None));
        assert_eq!(read("--request-memory-limit=1GiB"), Ok(Some(MemoryLimit::Bytes(1 << 30))));
        assert_eq!(read("--request-memory-limit=0.5"), Ok(Some(MemoryLimit::Fraction(0.5))));
        for text in ["0", "much", "1.5", "host:1GB", "-1"] {
            let mistakes = read(&format!("--request-memory-limit={text}")).expect_err(text);
            let expected =
                format!("--request-memory-limit: '{text}' is not BYTES or FRACTION above 0, such as 2GB or 0.1");
            assert_eq!(mistakes, [expected]);
        }
    }

    #[test]
    fn every_wrong_limit_is_told() {
        let wrong =
            ["host", "host:", "host:x", "gpu:1", "host:1.5", "host:0.0", "host:-1", "host:99999999999GB", "0:1.5GB"];
        for text in wrong {
            let mistakes = read(&format!("--memory-limit={text}")).expect_err(text);
            assert!(mistakes[0].starts_with(&format!("--memory-limit: '{text}' is not DEVICE:BYTES")), "{mistakes:?}");
        }
        let twice = read("--memory-limit=host:1GB --memory-limit=cpu:0.5").expect_err("twice");
        assert_eq!(twice, ["--memory-limit: the limit of cpu is given twice"]);
    }
}
