//! Any bytes as a configuration: as `config.pbtxt`, and, if they are text, as a JSON override.
//!
//! Reading, checking and finishing end in a configuration or in mistakes that all have a place, never in a panic.

#![no_main]

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use nereid::repository::{BackendFacts, CudaDevices, Facts, Mistakes, ModelDir, Source, Stamp, read};

static FACTS: LazyLock<Facts> = LazyLock::new(|| {
    let backend = |name: &str, file: Option<&str>, uses_cuda| BackendFacts {
        name: name.to_owned(),
        default_model_filename: file.map(str::to_owned),
        uses_cuda,
        parameter_keys: vec!["identity.delay_us".to_owned(), "INFERENCE_MODE".to_owned()],
        check_parameters: Arc::new(|_| Vec::new()),
    };
    Facts {
        cuda_devices: CudaDevices::new(|| vec![0, 1]),
        backends: vec![backend("identity", None, false), backend("pytorch", Some("model.pt"), true)],
        queue_requests_max: 100,
        ..Facts::default()
    }
});

fuzz_target!(|data: &[u8]| {
    let model = ModelDir {
        name: "m".to_owned(),
        path: PathBuf::from("/nonexistent/m"),
        versions: vec![1, 2],
        stamp: Stamp::default(),
    };
    follow(&model, Source::Text(data), true);
    if let Ok(json) = std::str::from_utf8(data) {
        follow(&model, Source::Json(json), false);
    }
});

fn follow(model: &ModelDir, source: Source<'_>, has_lines: bool) {
    let written = match read(model, source, &FACTS) {
        Ok(written) => written,
        Err(mistakes) => return said(&mistakes, has_lines),
    };
    let _ = written.versions(&model.versions);
    let _ = written.files(1, &FACTS);
    match written.finish(&FACTS) {
        Ok(finished) => {
            assert_eq!(&*finished.config.name, "m");
            assert!(finished.config.instances.iter().all(|instances| instances.count > 0));
        }
        Err(mistakes) => said(&mistakes, has_lines),
    }
}

fn said(mistakes: &Mistakes, has_lines: bool) {
    assert!(!mistakes.is_empty());
    assert!(mistakes.iter().all(|mistake| mistake.position.is_some() == has_lines && !mistake.message.is_empty()));
    assert!(!mistakes.to_string().is_empty());
}
