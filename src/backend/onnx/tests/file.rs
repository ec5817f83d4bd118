//! Model files for tests: the part of ONNX's messages (`onnx.proto`) that small graphs need, and a graph to build up.
//!
//! Used by the tests of the backend and by those of the whole server.

use prost::Message;

/// The version of the format, and that of the operators: what ONNX Runtime 1.13 and newer reads.
const IR_VERSION: i64 = 8;
const OPERATORS_VERSION: i64 = 17;

/// An element type by ONNX's number.
pub type ElementType = i32;
pub const FP32: ElementType = 1;
pub const STRING: ElementType = 8;

#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(int64, tag = "1")]
    ir_version: i64,
    #[prost(message, optional, tag = "7")]
    graph: Option<Graph>,
    #[prost(message, repeated, tag = "8")]
    opset_import: Vec<OperatorSet>,
}

#[derive(Clone, PartialEq, Message)]
struct OperatorSet {
    #[prost(string, tag = "1")]
    domain: String,
    #[prost(int64, tag = "2")]
    version: i64,
}

/// A graph, which is also its message.
#[derive(Clone, PartialEq, Message)]
pub struct Graph {
    #[prost(message, repeated, tag = "1")]
    node: Vec<Node>,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<Constant>,
    #[prost(message, repeated, tag = "11")]
    input: Vec<ValueInfo>,
    #[prost(message, repeated, tag = "12")]
    output: Vec<ValueInfo>,
}

#[derive(Clone, PartialEq, Message)]
struct Node {
    #[prost(string, repeated, tag = "1")]
    input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    output: Vec<String>,
    #[prost(string, tag = "4")]
    op_type: String,
}

#[derive(Clone, PartialEq, Message)]
struct Constant {
    #[prost(int64, repeated, tag = "1")]
    dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    data_type: i32,
    #[prost(string, tag = "8")]
    name: String,
    #[prost(bytes = "vec", tag = "9")]
    raw_data: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct ValueInfo {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    kind: Option<Kind>,
}

#[derive(Clone, PartialEq, Message)]
struct Kind {
    #[prost(message, optional, tag = "1")]
    tensor: Option<TensorKind>,
    #[prost(message, optional, boxed, tag = "4")]
    sequence: Option<Box<SequenceKind>>,
}

#[derive(Clone, PartialEq, Message)]
struct SequenceKind {
    #[prost(message, optional, boxed, tag = "1")]
    element: Option<Box<Kind>>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorKind {
    #[prost(int32, tag = "1")]
    element: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<Dimensions>,
}

#[derive(Clone, PartialEq, Message)]
struct Dimensions {
    #[prost(message, repeated, tag = "1")]
    dim: Vec<Dimension>,
}

#[derive(Clone, PartialEq, Message)]
struct Dimension {
    #[prost(oneof = "Size", tags = "1, 2")]
    size: Option<Size>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Size {
    #[prost(int64, tag = "1")]
    Fixed(i64),
    #[prost(string, tag = "2")]
    Free(String),
}

/// A tensor's type; a dimension of -1 is free, under a name of its own place.
fn tensor(element: ElementType, dims: &[i64]) -> Kind {
    let dimension = |(place, dim): (usize, &i64)| Dimension {
        size: Some(if *dim < 0 { Size::Free(format!("d{place}")) } else { Size::Fixed(*dim) }),
    };
    let shape = Dimensions { dim: dims.iter().enumerate().map(dimension).collect() };
    Kind { tensor: Some(TensorKind { element, shape: Some(shape) }), sequence: None }
}

impl Graph {
    /// A graph without anything.
    pub fn empty() -> Self {
        Self { name: "test".to_owned(), ..Self::default() }
    }

    /// With an input tensor.
    pub fn input(mut self, name: &str, element: ElementType, dims: &[i64]) -> Self {
        self.input.push(ValueInfo { name: name.to_owned(), kind: Some(tensor(element, dims)) });
        self
    }

    /// With an output tensor.
    pub fn output(mut self, name: &str, element: ElementType, dims: &[i64]) -> Self {
        self.output.push(ValueInfo { name: name.to_owned(), kind: Some(tensor(element, dims)) });
        self
    }

    /// With an output that is a list of FP32 tensors.
    pub fn list(mut self, name: &str) -> Self {
        let element = Some(Box::new(tensor(FP32, &[])));
        let kind = Kind { tensor: None, sequence: Some(Box::new(SequenceKind { element })) };
        self.output.push(ValueInfo { name: name.to_owned(), kind: Some(kind) });
        self
    }

    /// With FP32 numbers under a name, which are the default of an input of that name.
    pub fn constant(mut self, name: &str, dims: &[i64], values: &[f32]) -> Self {
        let raw_data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.initializer.push(Constant { dims: dims.to_vec(), data_type: FP32, name: name.to_owned(), raw_data });
        self
    }

    /// With one more operation.
    pub fn node(mut self, op: &str, inputs: &[&str], output: &str) -> Self {
        let input = inputs.iter().map(|name| (*name).to_owned()).collect();
        self.node.push(Node { input, output: vec![output.to_owned()], op_type: op.to_owned() });
        self
    }

    /// The bytes of the model file.
    pub fn file(self) -> Vec<u8> {
        let operators = OperatorSet { domain: String::new(), version: OPERATORS_VERSION };
        let model = ModelProto { ir_version: IR_VERSION, graph: Some(self), opset_import: vec![operators] };
        model.encode_to_vec()
    }

    /// `Y = X + X` for FP32 rows of any length.
    pub fn doubled() -> Self {
        Self::empty().input("X", FP32, &[-1, -1]).output("Y", FP32, &[-1, -1]).node("Add", &["X", "X"], "Y")
    }
}
