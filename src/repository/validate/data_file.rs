//! Files with the bytes of a tensor, from which warm-up samples and states begin.

use super::super::files::is_inside;
use super::super::tree::shorten;
use super::Check;
use crate::model::data_type;
use crate::model::schema::DataType;
use crate::tensor::Shape;

/// What the file is to hold.
pub(super) struct Tensor<'a> {
    pub(super) dtype: DataType,
    /// The dimensions of one row.
    pub(super) dims: &'a [i64],
    /// The rows that it may hold, if not one.
    pub(super) rows: u32,
}

/// Checks the file `name` in the model's `folder`.
pub(super) fn check(check: &mut Check<'_>, key: String, folder: &str, name: &str, tensor: &Tensor<'_>) {
    let path = check.directory.join(folder).join(name);
    let inside = is_inside(name);
    let name = shorten(name);
    if !inside {
        check.mistake(key, format!("file '{name}' must stay inside '{folder}/'"));
        return;
    }
    let Some(found) = path.metadata().ok().filter(std::fs::Metadata::is_file).map(|metadata| metadata.len()) else {
        check.mistake(key, format!("file '{name}' does not exist in '{folder}/'"));
        return;
    };
    let size = data_type(tensor.dtype).and_then(|dtype| dtype.size());
    let elements = Shape::new(tensor.dims).elements();
    let Some(row) = size.zip(elements).and_then(|(size, elements)| size.checked_mul(elements)) else { return };
    let row = row as u64;
    if found < row {
        check.mistake(key, format!("file '{name}' has {found} bytes, a tensor of its dims has {row}"));
    } else if found != row && found != row.saturating_mul(u64::from(tensor.rows)) {
        check.warn(key, format!("file '{name}' has {found} bytes, of which the first {row} are used"));
    }
}
