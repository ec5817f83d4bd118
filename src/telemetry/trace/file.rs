//! Writes traces into files of the reference server's format: a JSON array that is whole after each write.
//!
//! Begin with [`TraceFile::write`]. Knows nothing of queues.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use serde_json::json;
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _};

use super::record::{Record, RecordedTensor, Side};
use crate::tensor::{DataType, strings};

/// The files that the traces of a server go to.
#[derive(Debug)]
pub struct TraceFile {
    /// As the operator gave it.
    base: PathBuf,
    /// The file of the traces without a log frequency, once it was begun.
    whole: Option<File>,
    /// The numbered file that was begun last.
    numbered: Option<Numbered>,
    /// The number of the next one.
    next: u64,
}

#[derive(Debug)]
struct Numbered {
    file: File,
    traces: u32,
}

impl TraceFile {
    /// Files of this name, and of this name and a number.
    pub fn new(base: PathBuf) -> Self {
        Self { base, whole: None, numbered: None, next: 0 }
    }

    /// Appends traces, each to the file that its settings name.
    ///
    /// # Errors
    /// If a file cannot be written; the traces from there on are lost.
    pub async fn write(&mut self, records: &[Record]) -> io::Result<()> {
        for record in records {
            let entries = entries(record);
            match record.values.log_frequency {
                0 => append(self.whole().await?, &entries).await?,
                frequency => {
                    let numbered = self.numbered(frequency).await?;
                    append(&mut numbered.file, &entries).await?;
                    numbered.traces += 1;
                }
            }
        }
        Ok(())
    }

    async fn whole(&mut self) -> io::Result<&mut File> {
        let file = match self.whole.take() {
            Some(file) => file,
            None => create(&self.base).await?,
        };
        Ok(self.whole.insert(file))
    }

    /// The numbered file that has room for one more of so many traces.
    async fn numbered(&mut self, frequency: u32) -> io::Result<&mut Numbered> {
        let numbered = match self.numbered.take().filter(|numbered| numbered.traces < frequency) {
            Some(numbered) => numbered,
            None => {
                let mut name = OsString::from(&self.base);
                name.push(format!(".{}", self.next));
                self.next += 1;
                Numbered { file: create(Path::new(&name)).await?, traces: 0 }
            }
        };
        Ok(self.numbered.insert(numbered))
    }
}

/// An empty file; one of an earlier run is overwritten.
async fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).write(true).truncate(true).open(path).await
}

/// Writes over the bracket that ends the array, so that readers find a whole one at any time; if that fails, the array
/// is as it was.
async fn append(file: &mut File, entries: &str) -> io::Result<()> {
    let end = file.seek(io::SeekFrom::End(0)).await?;
    let text = format!("{}{entries}]", if end > 0 { "," } else { "[" });
    let written = write_at(file, end.saturating_sub(1), &text).await;
    if written.is_err() {
        file.set_len(end).await?;
        write_at(file, end.saturating_sub(1), if end > 0 { "]" } else { "" }).await?;
    }
    written
}

async fn write_at(file: &mut File, at: u64, text: &str) -> io::Result<()> {
    file.seek(io::SeekFrom::Start(at)).await?;
    file.write_all(text.as_bytes()).await?;
    file.flush().await
}

/// The elements of the array for one trace: what it is of, its times, its tensors.
fn entries(record: &Record) -> String {
    let mut head = json!({ "id": record.id, "model_name": record.model });
    head["model_version"] = record.version.map_or(json!(-1), |version| json!(version));
    head["request_id"] = json!(record.shown_id());
    if let Some(above) = record.above {
        head["parent_id"] = json!(above);
    }
    let mut entries = vec![head];
    if record.values.level.timestamps {
        entries.extend(record.stamps.iter().map(|(name, at)| {
            let stamp = json!({ "name": name, "ns": record.clock.nanoseconds(*at) as u64 });
            json!({ "id": record.id, "timestamps": [stamp] })
        }));
    }
    entries.extend(
        record
            .tensors
            .iter()
            .map(|tensor| json!({ "id": record.id, "activity": activity(tensor.side), "tensor": described(tensor) })),
    );
    let lines: Vec<String> = entries.iter().map(serde_json::Value::to_string).collect();
    lines.join(",\n")
}

fn activity(side: Side) -> &'static str {
    match side {
        Side::Input => "TENSOR_QUEUE_INPUT",
        Side::Output => "TENSOR_BACKEND_OUTPUT",
    }
}

fn described(tensor: &RecordedTensor) -> serde_json::Value {
    let dims: Vec<String> = tensor.shape.iter().map(i64::to_string).collect();
    let mut described = json!({
        "name": tensor.name,
        "data": elements(tensor.dtype, &tensor.data),
        "shape": dims.join(","),
        "dtype": tensor.dtype.name(),
    });
    if !tensor.whole {
        described["truncated"] = json!(true);
    }
    described
}

/// The elements as text, with commas between them; one that is cut off is left out.
fn elements(dtype: DataType, data: &[u8]) -> String {
    fn of<const N: usize, T: ToString>(data: &[u8], read: impl Fn([u8; N]) -> T) -> String {
        let texts: Vec<String> = data.as_chunks::<N>().0.iter().map(|bytes| read(*bytes).to_string()).collect();
        texts.join(",")
    }
    match dtype {
        DataType::Bool => of(data, |[byte]| byte != 0),
        DataType::Uint8 => of(data, u8::from_le_bytes),
        DataType::Uint16 => of(data, u16::from_le_bytes),
        DataType::Uint32 => of(data, u32::from_le_bytes),
        DataType::Uint64 => of(data, u64::from_le_bytes),
        DataType::Int8 => of(data, i8::from_le_bytes),
        DataType::Int16 => of(data, i16::from_le_bytes),
        DataType::Int32 => of(data, i32::from_le_bytes),
        DataType::Int64 => of(data, i64::from_le_bytes),
        DataType::Fp16 => of(data, f16::from_le_bytes),
        DataType::Bf16 => of(data, bf16::from_le_bytes),
        DataType::Fp32 => of(data, f32::from_le_bytes),
        DataType::Fp64 => of(data, f64::from_le_bytes),
        DataType::Bytes => {
            let texts = strings::iter(data).map_while(|element| element.ok());
            texts.map(|text| format!("\"{}\"", String::from_utf8_lossy(text))).collect::<Vec<_>>().join(",")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use bytes::Bytes;
    use opentelemetry::trace::{SpanContext, SpanId};

    use super::super::record::Clock;
    use super::super::settings::{Level, Values};
    use super::*;
    use crate::infer::Instant;
    use crate::tensor::Shape;

    /// A trace of one request that was answered, 1000 ns after the beginning of the clock.
    fn record(id: u64, log_frequency: u32) -> Record {
        let ended = Instant::now();
        let level = Level { timestamps: true, tensors: true };
        let tensor = |side, name: &str, dtype, data: Bytes, whole| RecordedTensor {
            side,
            name: name.to_owned(),
            dtype,
            shape: Shape::new(&[1, 2]),
            data,
            whole,
        };
        let floats: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|value| value.to_le_bytes()).collect();
        Record {
            id,
            values: Values { level, rate: 1, count: None, log_frequency },
            model: "m".to_owned(),
            version: Some(3),
            message_id: "mine".to_owned(),
            request_id: "made".into(),
            span: SpanContext::empty_context(),
            model_span: SpanId::INVALID,
            above: None,
            parent: None,
            error: None,
            executed: None,
            stamps: vec![("REQUEST_START", ended - Duration::from_nanos(400)), ("REQUEST_END", ended)],
            ended,
            clock: Clock { instant: ended, system: SystemTime::UNIX_EPOCH + Duration::from_nanos(1000) },
            tensors: vec![
                tensor(Side::Input, "IN", DataType::Fp32, floats.into(), true),
                tensor(Side::Output, "OUT", DataType::Bytes, strings::encode([&b"a\"b"[..], b""]), false),
            ],
        }
    }

    #[test]
    fn a_trace_has_the_reference_servers_form() {
        let golden = r#"{"id":7,"model_name":"m","model_version":3,"request_id":"mine"},
{"id":7,"timestamps":[{"name":"REQUEST_START","ns":600}]},
{"id":7,"timestamps":[{"name":"REQUEST_END","ns":1000}]},
{"activity":"TENSOR_QUEUE_INPUT","id":7,"tensor":{"data":"1.5,-2","dtype":"FP32","name":"IN","shape":"1,2"}},
{"activity":"TENSOR_BACKEND_OUTPUT","id":7,"tensor":{"data":"\"a\"b\",\"\"","dtype":"BYTES","name":"OUT","shape":"1,2","truncated":true}}"#;
        assert_eq!(entries(&record(7, 0)), golden);
    }

    fn ids(path: &Path) -> Vec<u64> {
        let text = std::fs::read_to_string(path).expect("the file was written");
        let entries: Vec<serde_json::Value> = serde_json::from_str(&text).expect("a whole array");
        let heads = entries.iter().filter(|entry| entry.get("model_name").is_some());
        heads.filter_map(|head| head["id"].as_u64()).collect()
    }

    #[tokio::test]
    async fn one_file_is_a_whole_array_after_each_write() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = folder.path().join("trace.json");
        std::fs::write(&path, "left from before").expect("it is writable");
        let mut file = TraceFile::new(path.clone());
        file.write(&[record(1, 0)]).await.expect("it is writable");
        assert_eq!(ids(&path), [1]);
        file.write(&[record(2, 0), record(3, 0)]).await.expect("it is writable");
        assert_eq!(ids(&path), [1, 2, 3]);
    }

    #[tokio::test]
    async fn a_log_frequency_makes_numbered_files() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = |number: u32| folder.path().join(format!("trace.json.{number}"));
        let mut file = TraceFile::new(folder.path().join("trace.json"));
        for id in 1..=5 {
            file.write(&[record(id, 2)]).await.expect("it is writable");
        }
        assert_eq!([ids(&path(0)), ids(&path(1)), ids(&path(2))], [vec![1, 2], vec![3, 4], vec![5]]);
        assert!(!folder.path().join("trace.json").exists());
    }

    /// A file of `text` that can be overwritten and not grow, as on a disk that is full.
    fn full(text: &str) -> File {
        use std::io::Write as _;
        let memory = rustix::fs::memfd_create("trace", rustix::fs::MemfdFlags::ALLOW_SEALING).expect("memory");
        let mut file = std::fs::File::from(memory);
        file.write_all(text.as_bytes()).expect("it is memory");
        rustix::fs::fcntl_add_seals(&file, rustix::fs::SealFlags::GROW).expect("it allows seals");
        File::from_std(file)
    }

    #[tokio::test]
    async fn a_write_that_fails_leaves_the_array_as_it_was() {
        use tokio::io::AsyncReadExt as _;
        // What is full ends with the array, so that a write gets as far as the bracket.
        let page = rustix::param::page_size();
        for before in [String::new(), format!("[{}]", " ".repeat(page - 2))] {
            let mut file = full(&before);
            assert!(append(&mut file, &entries(&record(1, 0))).await.is_err());
            let mut after = String::new();
            file.seek(io::SeekFrom::Start(0)).await.expect("it is memory");
            file.read_to_string(&mut after).await.expect("it is memory");
            assert_eq!(after, before);
        }
    }

    #[tokio::test]
    async fn a_folder_that_is_not_there_is_an_error() {
        let mut file = TraceFile::new("/nonexistent/trace.json".into());
        assert!(file.write(&[record(1, 0)]).await.is_err());
    }
}
