//! An answer as it is kept: for any caller, in memory of its own.

use bytes::Bytes;

use crate::infer::{Output, ParameterValue, Response};

/// Tensors begin at multiples of this, as those do who come from a model.
const ALIGNMENT: usize = 64;

/// What the allocator and the counted pointers take beside what is in them.
const OVERHEAD: usize = 128;

/// A response without an id and without times.
#[derive(Debug)]
pub struct Entry(Response);

impl Entry {
    /// A copy of the response, for keeping. What it was may be a small view of a large buffer: of a batch, or of what
    /// came from the network.
    pub fn copy(response: &Response) -> Self {
        let mut entry = Self::view(response);
        let total = entry.0.outputs.iter().map(|output| aligned(output.tensor.data.len())).sum();
        let mut copy: Vec<u8> = Vec::with_capacity(total);
        for output in &entry.0.outputs {
            copy.resize(aligned(copy.len()), 0);
            copy.extend_from_slice(&output.tensor.data);
        }
        let copy = Bytes::from(copy);
        let mut begin = 0;
        for output in &mut entry.0.outputs {
            let end = begin + output.tensor.data.len();
            output.tensor.data = copy.slice(begin..end);
            begin = aligned(end);
        }
        entry
    }

    /// The response with its bytes where they are, for callers that wait now.
    pub fn view(response: &Response) -> Self {
        Self(Response { id: String::new(), times: None, ..response.clone() })
    }

    /// How many bytes a copy of the response takes.
    pub fn bytes(response: &Response) -> usize {
        let output = |output: &Output| {
            size_of::<Output>() + aligned(output.tensor.data.len()) + size_of_val(&*output.tensor.shape)
        };
        let outputs: usize = response.outputs.iter().map(output).sum();
        let parameter = |(name, value): (&String, &ParameterValue)| {
            let text = if let ParameterValue::String(text) = value { text.len() } else { 0 };
            OVERHEAD + name.len() + text
        };
        let parameters: usize = response.parameters.iter().map(parameter).sum();
        size_of::<Self>() + OVERHEAD + outputs + parameters
    }

    /// The answer to the request of this id.
    pub fn answer(&self, id: String) -> Response {
        Response { id, ..self.0.clone() }
    }
}

fn aligned(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGNMENT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infer::Parameters;
    use crate::tensor::{DataType, Shape, Tensor};

    #[test]
    fn a_copy_has_its_bytes_for_itself_and_is_as_large_as_is_said() {
        let batch = Bytes::from(vec![7u8; 1 << 20]);
        let output = |name: &str, data: Bytes| Output {
            name: name.into(),
            tensor: Tensor::new(DataType::Uint8, Shape::new(&[data.len() as i64]), data),
            placed: false,
        };
        let response = Response {
            model: "m".into(),
            version: 1,
            id: "x".to_owned(),
            outputs: vec![output("a", batch.slice(5..8)), output("b", Bytes::new()), output("c", batch.slice(0..100))],
            parameters: Parameters::new(),
            last: true,
            times: None,
        };
        let kept = Entry::copy(&response);
        let answer = kept.answer("y".to_owned());
        assert_eq!(answer.id, "y");
        for (output, original) in answer.outputs.iter().zip(&response.outputs) {
            assert_eq!(output.tensor, original.tensor);
            assert!(output.tensor.data.is_empty() || !batch.as_ptr_range().contains(&output.tensor.data.as_ptr()));
        }
        let bytes = Entry::bytes(&response);
        assert!((192..1024).contains(&bytes), "{bytes}");
    }
}
