//! The JSON of inference, read and written without a tree of values between text and tensor bytes.
//!
//! `data` reads the elements of a tensor, [`write()`] writes them, `parameter` reads parameters. Knows no requests.

pub mod data;
pub mod parameter;
mod write;

pub use write::{string, tensor, value};

/// What is wrong with a text of JSON, in one line: where its syntax ends, or what was refused of its contents.
pub fn reason(error: &serde_json::Error) -> String {
    let mut text = error.to_string();
    if !error.is_data() {
        return format!("failed to parse the request JSON buffer: {text}");
    }
    // Where contents are wrong is said by name already, and a position within a part of the text would be misleading.
    let place = format!(" at line {} column {}", error.line(), error.column());
    if text.ends_with(&place) {
        text.truncate(text.len() - place.len());
    }
    text
}
