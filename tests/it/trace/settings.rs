//! Trace and log settings by call, and what they do to a running server.

use std::collections::HashMap;

use nereid::protocol::v2::wire::log_settings_request::setting_value::ParameterChoice;
use nereid::protocol::v2::wire::{
    LogSettingsRequest, TraceSettingRequest, log_settings_request, log_settings_response, trace_setting_request,
};
use tonic::{Code, Status};

use super::{Client, client, infer, repository, request};
use crate::process::Process;

/// Changes these settings of a model, or of the server, and gives all that hold then.
async fn trace(
    client: &mut Client,
    model: &str,
    change: &[(&str, &[&str])],
) -> Result<HashMap<String, Vec<String>>, Status> {
    let value = |texts: &[&str]| trace_setting_request::SettingValue {
        value: texts.iter().map(|text| (*text).to_owned()).collect(),
    };
    let settings = change.iter().map(|(name, texts)| ((*name).to_owned(), value(texts))).collect();
    let asked = TraceSettingRequest { settings, model_name: model.to_owned() };
    let told = client.trace_setting(asked).await?.into_inner().settings;
    Ok(told.into_iter().map(|(name, value)| (name, value.value)).collect())
}

async fn log(
    client: &mut Client,
    change: &[(&str, ParameterChoice)],
) -> Result<HashMap<String, log_settings_response::SettingValue>, Status> {
    let value =
        |choice: &ParameterChoice| log_settings_request::SettingValue { parameter_choice: Some(choice.clone()) };
    let settings = change.iter().map(|(name, choice)| ((*name).to_owned(), value(choice))).collect();
    Ok(client.log_settings(LogSettingsRequest { settings }).await?.into_inner().settings)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_traced_from_the_call_that_says_so_until_its_count_is_used_up() {
    let root = repository();
    let folder = tempfile::tempdir().expect("a temporary directory");
    let base = folder.path().join("trace.json");
    let server = Process::start(root.path(), &["--trace-config", &format!("triton,file={}", base.display())]);
    let mut client = client(&server).await;
    let told = trace(&mut client, "", &[]).await.expect("told");
    let expected = [
        ("trace_level", "OFF"),
        ("trace_rate", "1000"),
        ("trace_count", "-1"),
        ("log_frequency", "0"),
        ("trace_mode", "triton"),
        ("trace_file", base.to_str().expect("a text")),
    ];
    assert_eq!(told, expected.into_iter().map(|(name, text)| (name.to_owned(), vec![text.to_owned()])).collect());

    infer(&mut client, request("m"), &[]).await.expect("answered");
    let change: [(&str, &[&str]); 4] =
        [("trace_level", &["TIMESTAMPS"]), ("trace_rate", &["1"]), ("trace_count", &["3"]), ("log_frequency", &["2"])];
    trace(&mut client, "m", &change).await.expect("changed");
    for model in ["n", "m", "m", "m", "m", "n"] {
        infer(&mut client, request(model), &[]).await.expect("answered");
    }
    let told = trace(&mut client, "m", &[("trace_rate", &[])]).await.expect("changed");
    assert_eq!((told["trace_count"][0].as_str(), told["trace_rate"][0].as_str()), ("0", "1000"));
    let (code, message) = refusal(trace(&mut client, "nobody", &[]).await);
    assert_eq!((code, message.as_str()), (Code::InvalidArgument, "Request for unknown model : nobody"));
    let (code, _) = refusal(trace(&mut client, "", &[("trace_file", &["x"])]).await);
    assert_eq!(code, Code::Unimplemented);
    drop(client);
    server.stop();

    let traces = |number: u32| {
        let text = std::fs::read_to_string(folder.path().join(format!("trace.json.{number}"))).expect("written");
        text.matches(r#""model_name":"m""#).count()
    };
    assert_eq!((traces(0), traces(1)), (2, 1));
    assert_eq!(std::fs::read_dir(folder.path()).expect("readable").count(), 2, "nothing else was traced");
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_appear_and_disappear_as_a_call_says() {
    let root = repository();
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let path = file.path().to_str().expect("a text");
    let server = Process::start(root.path(), &["--log-file", path]);
    let mut client = client(&server).await;
    let told = log(&mut client, &[]).await.expect("told");
    let choice = |name: &str| format!("{:?}", told[name].parameter_choice.as_ref().expect("a value"));
    assert_eq!(choice("log_file"), format!("StringParam({path:?})"));
    assert_eq!((choice("log_info"), choice("log_verbose_level")), ("BoolParam(true)".into(), "Uint32Param(0)".into()));
    assert_eq!(choice("log_format"), "StringParam(\"default\")");

    let lines = || std::fs::read_to_string(file.path()).expect("it is text").matches("request answered").count();
    infer(&mut client, request("m"), &[]).await.expect("answered");
    assert_eq!(lines(), 0);
    log(&mut client, &[("log_verbose_level", ParameterChoice::Uint32Param(1))]).await.expect("changed");
    infer(&mut client, request("m"), &[]).await.expect("answered");
    assert_eq!(lines(), 1);
    log(&mut client, &[("log_verbose_level", ParameterChoice::Uint32Param(0))]).await.expect("changed");
    infer(&mut client, request("m"), &[]).await.expect("answered");
    assert_eq!(lines(), 1);
    let wrong = log(&mut client, &[("log_info", ParameterChoice::Uint32Param(1))]).await;
    assert_eq!(refusal(wrong), (Code::InvalidArgument, "expect boolean for 'log_info'".to_owned()));
    let (code, _) = refusal(log(&mut client, &[("log_file", ParameterChoice::StringParam("x".into()))]).await);
    assert_eq!(code, Code::Unimplemented);
    drop(client);
    server.stop();
}

/// The code and message of a refusal.
fn refusal<T: std::fmt::Debug>(answer: Result<T, Status>) -> (Code, String) {
    let status = answer.expect_err("a refusal");
    (status.code(), status.message().to_owned())
}
