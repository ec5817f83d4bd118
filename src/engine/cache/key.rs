//! What decides an answer, as one digest: SHA-256, so that no two requests share one, by chance or on purpose.
//!
//! Clients share the cache, and one that could make a request with another's key could choose the other's answer. A large
//! request is read in steps, so that the thread of a connection is not kept from others. Begin with [`Search::step`].

use ring::digest::{Context, SHA256};
use smallvec::SmallVec;

use super::store::Key;
use crate::infer::{ParameterValue, Request};
use crate::tensor::NamedTensor;

/// The most bytes of tensors that one step reads.
const STEP_BYTES: usize = 1 << 20;

/// The key of one request, which is being made.
///
/// Who asks, until when and how urgently is not part of it, nor is the order of the inputs.
pub struct Search {
    digest: Digest,
    /// The places of the inputs by their names.
    order: SmallVec<[usize; 8]>,
    /// How many inputs were read, and how much of the next.
    read: (usize, usize),
}

impl Search {
    /// Begins the key of `request` to the model version that `owner` stands for.
    pub fn new(owner: u64, request: &Request) -> Self {
        let mut digest = Digest(Context::new(&SHA256));
        digest.number(owner);
        // Classes are made of the outputs behind the cache.
        digest.number(request.outputs.len() as u64);
        request.outputs.iter().for_each(|output| digest.text(&output.name));
        digest.number(request.parameters.len() as u64);
        for (name, value) in &request.parameters {
            digest.text(name);
            digest.parameter(value);
        }
        digest.number(request.inputs.len() as u64);
        let mut order: SmallVec<[usize; 8]> = (0..request.inputs.len()).collect();
        order.sort_by(|one, other| request.inputs[*one].name.cmp(&request.inputs[*other].name));
        Self { digest, order, read: (0, 0) }
    }

    /// Reads on in the same request. Gives the key once all was read.
    pub fn step(&mut self, request: &Request) -> Option<Key> {
        let mut left = STEP_BYTES;
        while let Some(&at) = self.order.get(self.read.0) {
            let NamedTensor { name, tensor } = &request.inputs[at];
            let begin = self.read.1;
            if begin == 0 {
                self.digest.text(name);
                self.digest.number(tensor.dtype as u64);
                self.digest.number(tensor.shape.len() as u64);
                tensor.shape.iter().for_each(|dim| self.digest.number(*dim as u64));
                self.digest.number(tensor.data.len() as u64);
            }
            let end = tensor.data.len().min(begin + left);
            self.digest.0.update(&tensor.data[begin..end]);
            if end < tensor.data.len() {
                self.read.1 = end;
                return None;
            }
            left -= end - begin;
            self.read = (self.read.0 + 1, 0);
        }
        let mut key = Key::default();
        key.copy_from_slice(self.digest.0.clone().finish().as_ref());
        Some(key)
    }
}

/// Everything goes in with its length or as a number of fixed size, so that no two requests look alike.
struct Digest(Context);

impl Digest {
    fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.update(text.as_bytes());
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
                self.text(text);
            }
            ParameterValue::Double(number) => {
                self.number(3);
                self.number(number.to_bits());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use bytes::Bytes;

    use super::*;
    use crate::infer::{Instant, RequestedOutput};
    use crate::tensor::{DataType, Shape, Tensor};

    fn of(owner: u64, request: &Request) -> Key {
        let mut search = Search::new(owner, request);
        loop {
            if let Some(key) = search.step(request) {
                return key;
            }
        }
    }

    fn input(name: &str, dtype: DataType, shape: &[i64], data: &'static [u8]) -> NamedTensor {
        let tensor = Tensor::new(dtype, Shape::new(shape), Bytes::from_static(data));
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
    fn a_large_request_is_read_in_steps_to_its_last_byte() {
        let large = |last: u8| {
            let mut bytes = vec![1u8; 2 * STEP_BYTES + 3];
            *bytes.last_mut().expect("it is not empty") = last;
            let shape = Shape::new(&[bytes.len() as i64]);
            let tensor = Tensor::new(DataType::Uint8, shape, Bytes::from(bytes));
            let inputs = vec![NamedTensor { name: "a".to_owned(), tensor }, input("b", DataType::Uint8, &[1], b"b")];
            Request { inputs, ..Request::new("m", Instant::now()) }
        };
        assert_ne!(of(1, &large(1)), of(1, &large(2)));
        let request = large(1);
        let mut search = Search::new(1, &request);
        assert!(search.step(&request).is_none() && search.step(&request).is_none());
        assert_eq!(search.step(&request), Some(of(1, &large(1))));
    }

    #[test]
    fn whatever_decides_the_answer_makes_another_key() {
        let plain = request(two(b"ab", b"cd"));
        let output =
            |name: &str, classification| RequestedOutput { name: name.to_owned(), classification, keep: false };
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
