//! Any bytes as the JSON of a request: what is read has the size of its elements, and reads back when it is written.
//!
//! The first byte chooses between a whole request and the elements of one tensor, and their type.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use nereid::protocol::http::{decode, json};
use nereid::tensor::{DataType, Shape, Tensor, strings};

fuzz_target!(|data: &[u8]| {
    let Some((choice, text)) = data.split_first() else { return };
    match DataType::ALL.get(usize::from(choice % 16)) {
        Some(dtype) => elements(text, *dtype),
        None => request(text),
    }
});

fn request(text: &[u8]) {
    let Ok(decoded) = decode::request(text, Bytes::new()) else { return };
    let held: usize = decoded.message.raw_input_contents.iter().map(Bytes::len).sum();
    // An element takes two characters, with the comma before it, and at most eight bytes.
    assert!(held <= text.len() * 4);
    let shared = decoded.message.inputs.iter().filter(|input| input.parameters.contains_key("shared_memory_region"));
    assert_eq!(decoded.message.inputs.len(), decoded.message.raw_input_contents.len() + shared.count());
}

fn elements(text: &[u8], dtype: DataType) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    let Ok(read) = json::data::read(text, dtype, "in") else { return };
    match dtype.size() {
        Some(size) => assert_eq!(read.bytes.len(), read.count * size),
        None => assert_eq!(strings::check(&read.bytes, read.count), Ok(())),
    }
    let tensor = Tensor::new(dtype, Shape::new(&[read.count as i64]), read.bytes.clone());
    let mut written = Vec::new();
    json::tensor(&mut written, &tensor, "out").expect("what was read from JSON has a form in it");
    let written = String::from_utf8(written).expect("JSON is UTF-8");
    let again = json::data::read(&written, dtype, "in").expect("it reads back");
    // The one not-a-number that JSON has stands for all.
    assert_eq!(again, read, "{written}");
}
