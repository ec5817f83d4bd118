//! What decides an answer, as one digest: SHA-256, so that no two requests share one, by chance or on purpose.
//!
//! Clients share the cache, and one that could make a request with another's key could choose the other's answer. Begin
//! with [`of`].

use ring::digest::{Context, SHA256};
use smallvec::SmallVec;

use super::store::Key;
use crate::infer::{ParameterValue, Request};
use crate::tensor::NamedTensor;

/// The key of `request` to the model version that `owner` stands for. Inputs may come in any order.
///
/// Who asks, until when and how urgently is not part of it.
pub fn of(owner: u64, request: &Request) -> Key {
    let mut digest = Digest(Context::new(&SHA256));
    digest.number(owner);
    let mut inputs: SmallVec<[&NamedTensor; 8]> = request.inputs.iter().collect();
    inputs.sort_by(|one, other| one.name.cmp(&other.name));
    digest.number(inputs.len() as u64);
    for NamedTensor { name, tensor } in inputs {
        digest.bytes(name.as_bytes());
        digest.number(tensor.dtype as u64);
        digest.number(tensor.shape.len() as u64);
        tensor.shape.iter().for_each(|dim| digest.number(*dim as u64));
        digest.bytes(&tensor.data);
    }
    // Classes are made of the outputs behind the cache.
    digest.number(request.outputs.len() as u64);
    request.outputs.iter().for_each(|output| digest.bytes(output.name.as_bytes()));
    digest.number(request.parameters.len() as u64);
    for (name, value) in &request.parameters {
        digest.bytes(name.as_bytes());
        digest.parameter(value);
    }
    digest.finish()
}

/// Everything goes in with its length or as a number of fixed size, so that no two requests look alike.
struct Digest(Context);

impl Digest {
    fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    fn parameter(&mut self, value: &ParameterValue) {
        match value {
            ParameterValue::Bool(truth) => {
                self.number(0);
                self.number(u64::from(*truth));
            }
            ParameterValue::Int(number) => {
                self.number(1);
                self.number(*number as u64);
            }
            ParameterValue::String(text) => {
                self.number(2);
                self.bytes(text.as_bytes());
            }
            ParameterValue::Double(number) => {
                self.number(3);
                self.number(number.to_bits());
            }
        }
    }

    fn finish(self) -> Key {
        let mut key = Key::default();
        key.copy_from_slice(self.0.finish().as_ref());
        key
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use bytes::Bytes;

    use super::*;
    use crate::infer::{Instant, RequestedOutput};
    use crate::tensor::{DataType, Shape, Tensor};

    fn input(name: &str, dtype: DataType, shape: &[i64], data: &'static [u8]) -> NamedTensor {
        let tensor = Tensor { dtype, shape: Shape::new(shape), data: Bytes::from_static(data) };
        NamedTensor { name: name.to_owned(), tensor }
    }

    fn request(inputs: Vec<NamedTensor>) -> Request {
        Request { inputs, ..Request::new("m", Instant::now()) }
    }

    fn two(first: &'static [u8], second: &'static [u8]) -> Vec<NamedTensor> {
        vec![input("a", DataType::Uint8, &[2], first), input("b", DataType::Uint8, &[2], second)]
    }

    #[test]
    fn the_order_of_inputs_and_who_asks_do_not_matter() {
        let one = request(two(b"ab", b"cd"));
        let mut other = Request { id: "7".to_owned(), priority: 3, deadline: Some(Instant::now()), ..one.clone() };
        other.inputs.reverse();
        assert_eq!(of(1, &one), of(1, &other));
    }

    #[test]
    fn whatever_decides_the_answer_makes_another_key() {
        let plain = request(two(b"ab", b"cd"));
        let output = |name: &str, classification| RequestedOutput { name: name.to_owned(), classification };
        let with = |value| Request { parameters: [("p".to_owned(), value)].into(), ..plain.clone() };
        let one = |dtype, shape: &[i64]| request(vec![input("a", dtype, shape, b"abcd")]);
        let requests = [
            request(two(b"ab", b"ce")),
            request(two(b"cd", b"ab")),
            // The same bytes divided in another way.
            request(two(b"abc", b"d")),
            request(vec![input("ab", DataType::Uint8, &[2], b"ab"), input("", DataType::Uint8, &[2], b"cd")]),
            one(DataType::Uint8, &[4]),
            one(DataType::Int8, &[4]),
            one(DataType::Uint8, &[2, 2]),
            one(DataType::Uint8, &[4, 1]),
            Request { outputs: vec![output("x", 0)], ..plain.clone() },
            Request { outputs: vec![output("x", 0), output("y", 0)], ..plain.clone() },
            Request { outputs: vec![output("y", 0), output("x", 0)], ..plain.clone() },
            with(ParameterValue::Int(1)),
            with(ParameterValue::Bool(true)),
            with(ParameterValue::Double(1.0)),
            with(ParameterValue::String("1".to_owned())),
            plain.clone(),
        ];
        let mut keys: HashSet<Key> = requests.iter().map(|request| of(1, request)).collect();
        keys.extend(requests.iter().map(|request| of(2, request)));
        assert_eq!(keys.len(), 2 * requests.len());
        let classes = Request { outputs: vec![output("x", 3)], ..plain };
        assert!(keys.contains(&of(1, &classes)), "classes are made behind the cache");
    }
}
