//! Configurations and descriptions that come from a model file.

use super::*;

#[test]
fn a_configuration_is_completed_from_the_schema() {
    let script = Script::new("def forward(self, a, words: List[str], k: int = 1):\n    return a, words\n");
    let bench = Bench::new(&script, &[], &[]);
    let mut config = schema::ModelConfig { name: "m".to_owned(), ..Default::default() };
    LibTorch::default().complete(&bench.files(), &mut config).expect("the schema tells");
    assert_eq!((config.backend.as_str(), config.platform.as_str()), ("pytorch", "pytorch_libtorch"));
    let inputs: Vec<_> = config.input.iter().map(|input| (input.name.as_str(), input.data_type())).collect();
    assert_eq!(inputs, [("a", schema::DataType::TypeInvalid), ("words", schema::DataType::TypeString)]);
    let outputs: Vec<_> = config.output.iter().map(|output| output.name.as_str()).collect();
    assert_eq!(outputs, ["OUTPUT__0", "OUTPUT__1"]);
}

#[test]
fn inspect_describes_a_file_and_offers_a_configuration() {
    let bench = Bench::new(&weighted(), &[], &[]);
    let text = crate::backend::libtorch::inspect(&bench.folder.path().join("model.pt")).expect("it loads");
    assert!(text.contains("forward takes\n  x: Tensor\n"), "{text}");
    assert!(text.contains("parameters: 1, 16 bytes (TYPE_FP32)"), "{text}");
    assert!(text.contains("input {\n  # type and dims"), "{text}");
    assert!(text.contains("name: \"OUTPUT__0\""), "{text}");
}
