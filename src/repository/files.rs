//! The files that a configuration names: they stay inside the model's directory.

use std::borrow::Cow;
use std::fs;
use std::path::{Component, Path};

/// The largest label file that is read.
const LABEL_BYTES_MAX: u64 = 64 << 20;

/// Whether `name` is a relative path that leads nowhere above where it begins.
pub fn is_inside(name: &str) -> bool {
    !name.is_empty()
        && !name.contains('\0')
        && Path::new(name).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

/// What is in a label file.
pub(super) struct Labels {
    /// Its lines.
    pub(super) lines: Vec<String>,
    /// Whether all of it is UTF-8; what is not has become the replacement character.
    pub(super) is_text: bool,
}

/// The labels of a file; an error says what is wrong with it.
pub(super) fn labels(directory: &Path, name: &str) -> Result<Labels, String> {
    let path = directory.join(name);
    let cannot = |error: std::io::Error| format!("cannot read label file '{}': {error}", path.display());
    let bytes = fs::metadata(&path).map_err(cannot)?.len();
    if bytes > LABEL_BYTES_MAX {
        return Err(format!("label file '{}' is larger than {LABEL_BYTES_MAX} bytes", path.display()));
    }
    let bytes = fs::read(&path).map_err(cannot)?;
    let text = String::from_utf8_lossy(&bytes);
    let is_text = matches!(text, Cow::Borrowed(_));
    Ok(Labels { lines: text.lines().map(str::to_owned).collect(), is_text })
}
