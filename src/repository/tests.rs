//! The whole way of a configuration, from text to meaning.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::model::schema::model_config::SchedulingChoice;
use crate::model::{Device, Scheduling};

pub(super) fn facts() -> Facts {
    let backend = |name: &str, file: Option<&str>, uses_cuda, keys: &[&str]| BackendFacts {
        name: name.to_owned(),
        default_model_filename: file.map(str::to_owned),
        uses_cuda,
        parameter_keys: keys.iter().map(|key| (*key).to_owned()).collect(),
        check_parameters: Arc::new(|config| {
            let delay = config.parameters.get("identity.delay_us").map(|each| each.string_value.as_str());
            let wrong = delay.filter(|delay| delay.parse::<u64>().is_err());
            wrong.map(|_| ("identity.delay_us".to_owned(), "not a number".to_owned())).into_iter().collect()
        }),
    };
    Facts {
        backends: vec![
            backend("identity", None, false, &["identity.delay_us", "identity.mode"]),
            backend("pytorch", Some("model.pt"), true, &["INFERENCE_MODE"]),
        ],
        parameter_keys: vec![],
        histograms: &["nereid_batch_rows"],
        queue_requests_max: 1000,
        ..Facts::default()
    }
}

fn model(name: &str) -> ModelDir {
    let path = PathBuf::from("/nonexistent").join(name);
    ModelDir { name: name.to_owned(), path, versions: vec![1], stamp: Stamp::default() }
}

/// The mistakes of a text, one per line, without the file's name.
fn mistakes(text: &str) -> Vec<String> {
    let (_, _, found) = written::read_text(text.as_bytes(), Path::new("c"));
    found.mistakes.iter().map(|mistake| mistake.to_string().trim_start_matches("c:").to_owned()).collect()
}

fn schema(text: &str) -> crate::model::schema::ModelConfig {
    let (schema, _, found) = written::read_text(text.as_bytes(), Path::new("c"));
    assert!(found.mistakes.is_empty(), "{}", found.mistakes);
    schema.expect("there are no mistakes")
}

fn finish_json(json: &str, facts: &Facts) -> Result<Finished, Mistakes> {
    read(&model("m"), Source::Json(json), facts)?.finish(facts)
}

#[test]
fn of_many_warnings_the_first_are_told_and_the_others_counted() {
    let keys = (0..400).map(|index| format!("parameters {{ key: \"k{}\" }}\n", index / 2));
    let text = format!("backend: \"identity\"\n{}", keys.collect::<String>());
    let read = read(&model("m"), Source::Text(text.as_bytes()), &facts()).expect("nothing is wrong");
    let warnings = read.finish(&facts()).expect("nothing is wrong").warnings;
    assert_eq!(warnings.len(), 101);
    let twice = "parameters[k0]: 'parameters[k0]' is given more than once: the last value holds";
    assert!(warnings[0].to_string().ends_with(twice.split_once(": ").expect("it has a key").1), "{}", warnings[0]);
    // Each key is written twice, and unknown.
    assert!(warnings[100].to_string().ends_with("300 more warnings are not shown"), "{}", warnings[100]);
}

#[test]
fn a_folder_in_the_place_of_the_model_file_stands_for_the_file_in_it() {
    let root = tempfile::tempdir().expect("a folder for the test");
    let model = ModelDir { path: root.path().to_owned(), ..model("m") };
    let file = |name: &str| {
        let config = format!("backend: \"pytorch\" default_model_filename: \"{name}\"");
        let written = read(&model, Source::Text(config.as_bytes()), &facts()).expect("it is right");
        let found = written.files(1, &facts()).expect("it is inside").model_file.expect("it has one");
        found.strip_prefix(root.path()).expect("it is inside").to_str().expect("it is text").to_owned()
    };
    std::fs::create_dir_all(root.path().join("1/own")).expect("the folder is writable");
    assert_eq!(file("own"), "1/own", "there is nothing in it yet");
    std::fs::write(root.path().join("1/own/model.pt"), "").expect("the folder is writable");
    assert_eq!([file("own"), file("other")], ["1/own/model.pt", "1/other"]);
}

#[test]
fn every_form_of_the_text_format_is_read() {
    let config = schema(
        r#"
        # A comment.
        name: "a" 'b' "\x63\144\u00e9\n" ; max_batch_size: 0x10,
        backend: "identity"
        input [ { name: "x" data_type: TYPE_FP32 dims: [ 1, -1 ] }, < name: "y", data_type: 11; dims: 07 dims: 2 > ]
        input: { name: "z" optional: true is_shape_tensor: t allow_ragged_batch: 1 }
        parameters: { key: "k" value: { string_value: "v" } }
        parameters { key: "l" value { string_value: "w" } }
        dynamic_batching {}
        "#,
    );
    assert_eq!(config.name, "abcdé\n");
    assert_eq!(config.max_batch_size, 16);
    assert_eq!(
        config.input.iter().map(|input| input.dims.clone()).collect::<Vec<_>>(),
        [vec![1, -1], vec![7, 2], vec![]]
    );
    assert_eq!(config.input[1].data_type, 11);
    assert!(config.input[2].optional && config.input[2].is_shape_tensor && config.input[2].allow_ragged_batch);
    assert_eq!(config.parameters["l"].string_value, "w");
    assert!(matches!(config.scheduling_choice, Some(SchedulingChoice::DynamicBatching(_))));
}

#[test]
fn floats_have_their_spellings() {
    let buckets = |list: &str| {
        let text = format!("model_metrics {{ metric_control {{ histogram_options {{ buckets: {list} }} }} }}");
        let metrics = schema(&text).model_metrics.expect("it was written");
        match metrics.metric_control[0].metric_options.clone() {
            Some(crate::model::schema::model_metrics::metric_control::MetricOptions::HistogramOptions(o)) => o.buckets,
            None => vec![],
        }
    };
    assert_eq!(
        buckets("[1.5, .5, 1e3, 2f, 1.5e-1F, -inf, -3, infinity]")[..7],
        [1.5, 0.5, 1000.0, 2.0, 0.15, f64::NEG_INFINITY, -3.0]
    );
    assert!(buckets("[nan]")[0].is_nan());
}

#[test]
fn all_mistakes_are_found_at_once_with_their_places() {
    let found = mistakes(
        "max_batchsize: 8\ninput [\n  {\n    name: \"x\"\n    data_type: TYPE_FLOAT32\n    dims: [ 1, \"2\" ]\n  }\n]\n\
         max_batch_size: 99999999999\nname: 5\nname: \"n\"\n",
    );
    assert_eq!(
        found,
        [
            "1:1: unknown field 'max_batchsize', did you mean 'max_batch_size'?",
            "5:16: input[0].data_type: unknown value 'TYPE_FLOAT32' for 'data_type', did you mean 'TYPE_FP32'?",
            "6:16: input[0].dims[1]: expected a 64-bit integer for 'dims', got the string \"2\"",
            "9:17: 99999999999 is out of range for 'max_batch_size', a 32-bit integer",
            "10:7: expected a quoted string for 'name', got the number 5",
            "11:1: 'name' is given more than once, first at 10:1",
        ]
    );
}

#[test]
fn syntax_mistakes_do_not_hide_later_ones() {
    let found = mistakes(
        "name \"x\"\ninput [ { name: \"a\" dims: [1 2] ]\n?\nbackend: \"unterminated\nmax_batch_size: = 3\nfoo {\n",
    );
    assert_eq!(
        found,
        [
            "1:6: expected ':' after 'name', got the string \"x\"",
            "2:30: input[0].dims[1]: expected ',' or ']' in the list opened at 2:27, got the number 2",
            "2:33: input[0]: expected '}' to close the message opened at 2:9, got ']'",
            "3:1: unexpected character '?'",
            "4:10: backend: unterminated string",
            "5:17: max_batch_size: unexpected character '='",
            "6:1: unknown field 'foo'",
            "6:5: foo: unterminated message: this '{' has no matching '}'",
        ]
    );
}

#[test]
fn a_choice_can_be_made_once() {
    let found = mistakes("dynamic_batching { }\nsequence_batching { }\n");
    assert_eq!(found, ["2:1: 'sequence_batching' and 'dynamic_batching' exclude each other, give only one"]);
}

#[test]
fn nesting_is_limited() {
    let found = mistakes(&"input {".repeat(100_000));
    assert!(found.iter().any(|each| each.contains("nested deeper than 64 messages")), "{found:?}");
}

#[test]
fn lists_and_maps_are_limited() {
    let found = mistakes(&format!("version_policy {{ specific {{ versions: [ {} 1 ] }} }}", "1, ".repeat(5000)));
    assert_eq!(found, ["1:12329: version_policy.specific.versions: 'versions' has more than 4096 entries"]);
    let tags: String = (0..4097).map(|tag| format!("metric_tags {{ key: \"{tag}\" }}\n")).collect();
    assert_eq!(mistakes(&tags), ["4097:20: 'metric_tags' has more than 4096 entries"]);
}

#[test]
fn of_a_key_that_is_repeated_the_last_value_holds() {
    let text = r#"backend: "identity"
        parameters { key: "identity.mode" value { string_value: "first" } }
        parameters [ { key: "a" value { string_value: "b" } }, { key: "identity.mode" value { string_value: "last" } } ]"#;
    let finished =
        read(&model("m"), Source::Text(text.as_bytes()), &facts()).and_then(|written| written.finish(&facts()));
    let finished = finished.unwrap_or_else(|mistakes| panic!("{mistakes}"));
    assert_eq!(finished.config.parameters["identity.mode"], "last");
    let said = "3:71: 'parameters[identity.mode]' is given more than once: the last value holds";
    assert!(finished.warnings.iter().any(|warning| warning.to_string().ends_with(said)), "{:?}", finished.warnings);
    // What is wrong with a value is told of the last one, at its place.
    let broken =
        "parameters { key: \"a\" value { string_value: \"b\" } }\nparameters { key: \"a\" value { string_value: 1 } }";
    assert_eq!(mistakes(broken).len(), 1);
    assert!(mistakes(broken)[0].starts_with("2:"), "{:?}", mistakes(broken));
}

#[test]
fn a_hundred_mistakes_are_enough() {
    let (_, _, found) = written::read_text("a: 1\n".repeat(1000).as_bytes(), Path::new("c"));
    assert_eq!((found.mistakes.iter().count(), found.mistakes.len()), (100, 1000));
    assert!(found.mistakes.to_string().ends_with("\nand 900 more"));
}

#[test]
fn json_has_both_spellings_and_long_integers_as_strings() {
    let json = r#"{"backend": "identity", "maxBatchSize": 4, "input": [{"name": "x", "data_type": "type_fp32", "dims": ["3"]}],
        "output": [{"name": "y", "dataType": "TYPE_FP32", "dims": [3]}],
        "parameters": {"latency.budget_us": {"string_value": "5000"}},
        "dynamic_batching": {"max_queue_delay_microseconds": "100"}}"#;
    let config = finish_json(json, &facts()).expect("it is right").config;
    assert_eq!(config.max_batch_rows, 4);
    assert_eq!(config.budget.map(|budget| budget.total), Some(Duration::from_millis(5)));
    let Scheduling::Dynamic(batching) = config.scheduling else { panic!("it batches") };
    assert_eq!((batching.preferred_rows, batching.queue_delay_max), (vec![4], Duration::from_micros(100)));
    assert_eq!(batching.queue.requests_max, 1000);
}

#[test]
fn json_mistakes_name_the_key() {
    let json = r#"{"backend": "identity", "input": [{"name": "x", "data_typ": "TYPE_FP32", "dims": 3}], "max_batch_size": 1.5}"#;
    let mut found: Vec<_> =
        finish_json(json, &facts()).expect_err("it is wrong").iter().map(Mistake::to_string).collect();
    found.sort();
    assert_eq!(
        found,
        [
            "config override: expected a 32-bit integer for 'max_batch_size', got the number 1.5",
            "config override: input[0].data_typ: unknown field 'data_typ', did you mean 'data_type'?",
            "config override: input[0].dims: expected a list for 'dims', got the number 3",
        ]
    );
}

#[test]
fn kind_auto_takes_the_gpus_that_the_backend_can_use() {
    let gpus = Facts { cuda_devices: CudaDevices::new(|| vec![0, 1]), ..facts() };
    let devices = |backend: &str| {
        let finished =
            finish_json(&format!(r#"{{"backend": "{backend}", "instance_group": [{{"count": 2}}]}}"#), &gpus);
        let instances = finished.expect("it is right").config.instances;
        instances.iter().map(|each| (each.device, each.count)).collect::<Vec<_>>()
    };
    assert_eq!(devices("pytorch"), [(Device::Cuda(0), 2), (Device::Cuda(1), 2)]);
    assert_eq!(devices("identity"), [(Device::Cpu, 2)]);
}

#[test]
fn devices_are_looked_for_only_where_instances_may_run_on_them() {
    let looked = Arc::new(AtomicBool::new(false));
    let seen = looked.clone();
    let devices = CudaDevices::new(move || {
        seen.store(true, Ordering::SeqCst);
        Vec::new()
    });
    let facts = Facts { cuda_devices: devices, ..facts() };
    for config in [r#"{"backend": "identity"}"#, r#"{"backend": "pytorch", "instance_group": [{"kind": "KIND_CPU"}]}"#]
    {
        finish_json(config, &facts).expect("it is right");
        assert!(!looked.load(Ordering::SeqCst), "{config}");
    }
    finish_json(r#"{"backend": "pytorch"}"#, &facts).expect("it is right");
    assert!(looked.load(Ordering::SeqCst));
}

#[test]
fn what_a_backend_completes_may_leave_types_to_the_model() {
    let facts = facts();
    let mut written = read(&model("m"), Source::Json(r#"{"backend": "pytorch"}"#), &facts).expect("it is right");
    written.schema.input.push(crate::model::schema::ModelInput { name: "x".to_owned(), ..Default::default() });
    let config = written.finish(&facts).expect("the backend may").config;
    assert_eq!((config.inputs[0].dtype, config.inputs[0].dims.clone()), (None, None));
    assert_eq!(config.schema.platform, "pytorch_libtorch");
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = written::read_text(&bytes, Path::new("c"));
    }

    #[test]
    fn any_arrangement_of_pieces_is_read_without_panic(pieces in proptest::collection::vec(0usize..24, 0..80)) {
        const PIECES: [&str; 24] = [
            "input", "name", "dims", "parameters", "key", "value", "{", "}", "[", "]", "<", ">", ":", ",", ";", "-", "1",
            "\"s\"", "0x", "TYPE_FP32", "dynamic_batching", "\n", "\\", "1.5e",
        ];
        let text: String = pieces.iter().flat_map(|piece| [PIECES[*piece], " "]).collect();
        let _ = written::read_text(text.as_bytes(), Path::new("c"));
    }
}

#[test]
fn labels_that_are_missing_given_twice_or_no_text_are_suspicious() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let said = |labels: &[u8]| {
        std::fs::write(folder.path().join("labels.txt"), labels).expect("it can be written");
        let text = r#"backend: "identity" max_batch_size: 4
            input { name: "x" data_type: TYPE_FP32 dims: 3 }
            output { name: "y" data_type: TYPE_FP32 dims: 3 label_filename: "labels.txt" }"#;
        let model = ModelDir { path: folder.path().to_owned(), ..model("m") };
        let finished =
            read(&model, Source::Text(text.as_bytes()), &facts()).and_then(|written| written.finish(&facts()));
        let finished = finished.unwrap_or_else(|mistakes| panic!("{mistakes}"));
        assert_eq!(finished.config.outputs[0].labels.len(), String::from_utf8_lossy(labels).lines().count());
        finished.warnings.into_iter().map(|warning| warning.message).collect::<Vec<_>>()
    };
    assert_eq!(said(b"cat\ndog\r\nbird\n"), Vec::<String>::new());
    assert_eq!(
        said(b"cat\nchat-hu\xeant\nbird\n"),
        ["label file 'labels.txt' is not UTF-8: what is not becomes '\u{fffd}'"]
    );
    assert_eq!(said(b"cat\ndog\n"), ["label file 'labels.txt' has 2 labels, output 'y' has 3 elements"]);
    assert_eq!(said(b"cat\ndog\ncat\n"), ["label file 'labels.txt' has 'cat' twice, in lines 1 and 3"]);
    assert_eq!(said(b"cat\n\n\n"), Vec::<String>::new());
}
