//! The body of a request that is one JSON object, bounded in size; an empty body is an empty object.

use std::collections::BTreeMap;
use std::fmt;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body::{Body as _, SizeHint};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::{Error, Result};
use crate::gateway::request_memory::Portion;
use crate::protocol::v2::{RESERVED_MAX, room_for_more};

/// The most bytes of a body that holds settings only.
const SMALL_BYTES_MAX: usize = 64 << 10;
/// The most members of an object of any size.
const MEMBERS_MAX: usize = 4096;

/// A JSON object by key.
pub type Object = serde_json::Map<String, Value>;

/// All of `body`, which is refused if it has more than `bytes_max` bytes, or than `portion` can hold.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] if it is too large or the caller broke off; those of [`Portion::hold`].
pub async fn read(body: Body, bytes_max: usize, portion: &mut Portion) -> Result<Bytes> {
    gathered(body, bytes_max, portion, too_large).await
}

fn too_large(bytes_max: usize) -> Error {
    Error::invalid(format!(
        "request body exceeds the maximum allowed input size of {bytes_max} bytes. Use --http-max-input-size to increase \
         the limit."
    ))
}

/// All of `body`, without a copy if it came at once. Each piece is copied as soon as it is there, while the processor has
/// it, and so that the connection reads the next one into the same memory.
async fn gathered(
    body: Body,
    bytes_max: usize,
    portion: &mut Portion,
    too_large: impl Fn(usize) -> Error,
) -> Result<Bytes> {
    // What is announced to be too large is refused before it comes.
    if body.size_hint().lower() > bytes_max as u64 {
        return Err(too_large(bytes_max));
    }
    let mut body = Limited::new(body, bytes_max);
    let mut first = Bytes::new();
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| match error.is::<LengthLimitError>() {
            true => too_large(bytes_max),
            false => Error::invalid(format!("the request body could not be read: {error}")),
        })?;
        let Ok(data) = frame.into_data() else { continue };
        portion.hold(data.len())?;
        if first.is_empty() && whole.is_empty() {
            first = data;
            continue;
        }
        if whole.capacity() - whole.len() < first.len() + data.len() {
            let came = whole.len() + first.len() + data.len();
            whole.reserve(first.len() + data.len() + room(&body.size_hint(), came));
            whole.extend_from_slice(&std::mem::take(&mut first));
        }
        whole.extend_from_slice(&data);
    }
    Ok(if whole.is_empty() { first } else { whole.freeze() })
}

/// The memory to reserve for what is left of a body of which so many bytes `came`.
///
/// Where the length was announced, that is what is left; but who announces much has it only once he has sent much.
fn room(left: &SizeHint, came: usize) -> usize {
    let most = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    match left.exact() {
        Some(left) => most(left).min(RESERVED_MAX.max(4 * came)),
        None => room_for_more(came, most(left.upper().unwrap_or_default())),
    }
}

/// As [`read`], for a call that has little to say: parsed JSON can be many times as large as its text.
///
/// # Errors
/// As [`read`].
pub async fn read_small(body: Body, bytes_max: usize, portion: &mut Portion) -> Result<Bytes> {
    let too_large = |bytes_max| Error::invalid(format!("the request body has more than {bytes_max} bytes"));
    gathered(body, bytes_max.min(SMALL_BYTES_MAX), portion, too_large).await
}

/// The members of an object by name, the last of each, at most [`MEMBERS_MAX`] of them.
#[derive(Debug, Default)]
pub struct Members<'a>(pub BTreeMap<String, &'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> std::result::Result<Members<'de>, A::Error> {
        let mut members = Members::default();
        while let Some((key, value)) = access.next_entry()? {
            members.0.insert(key, value);
            if members.0.len() > MEMBERS_MAX {
                return Err(A::Error::custom(format!("more than {MEMBERS_MAX} members")));
            }
        }
        Ok(members)
    }
}

/// The object that `text` holds; `what` it is about is for messages.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] if it is anything else.
pub fn object(text: &[u8], what: &str) -> Result<Object> {
    parse(text, what)
}

/// As [`object`], into a type of the caller's choice.
///
/// # Errors
/// As [`object`].
pub fn parse<'a, T: Deserialize<'a>>(text: &'a [u8], what: &str) -> Result<T> {
    let text = if text.is_empty() { b"{}" } else { text };
    serde_json::from_slice(text)
        .map_err(|error| Error::invalid(format!("failed to parse the {what} request as a JSON object: {error}")))
}

/// The member `key` of `object` as an object; an empty one if it is not there.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] if it is there and no object.
pub fn take_object(object: &mut Object, key: &str) -> Result<Object> {
    match object.remove(key) {
        None => Ok(Object::new()),
        Some(Value::Object(found)) => Ok(found),
        Some(other) => Err(wrong_type(key, "an object", &other)),
    }
}

/// The member `key` as a text; `None` if it is not there.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] if it is no text.
pub fn text(object: &Object, key: &str) -> Result<Option<String>> {
    match object.get(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(wrong_type(key, "a string", other)),
    }
}

/// The member `key` as a number from 0 up; `None` if it is not there.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] if it is anything else.
pub fn unsigned(object: &Object, key: &str) -> Result<Option<u64>> {
    match object.get(key) {
        None => Ok(None),
        Some(found) => found.as_u64().map(Some).ok_or_else(|| wrong_type(key, "a whole number from 0 up", found)),
    }
}

/// The member `key` as a truth value; `None` if it is not there.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] if it is anything else.
pub fn boolean(object: &Object, key: &str) -> Result<Option<bool>> {
    match object.get(key) {
        None => Ok(None),
        Some(found) => found.as_bool().map(Some).ok_or_else(|| wrong_type(key, "a boolean", found)),
    }
}

/// The refusal of a member of another type than `expected`.
pub fn wrong_type(key: &str, expected: &str, found: &Value) -> Error {
    let found = match found {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    };
    Error::invalid(format!("Invalid value for '{key}': expected {expected}, got {found}"))
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use http_body::Frame;

    use super::*;

    /// A body that says how long it is.
    struct Announced<B>(B, u64);

    impl<B: http_body::Body + Unpin> http_body::Body for Announced<B> {
        type Data = B::Data;
        type Error = B::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            ctx: &mut Context<'_>,
        ) -> Poll<Option<std::result::Result<Frame<B::Data>, B::Error>>> {
            Pin::new(&mut self.0).poll_frame(ctx)
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(self.1)
        }
    }

    async fn whole(body: Body, bytes_max: usize) -> Result<Bytes> {
        read(body, bytes_max, &mut Portion::default()).await
    }

    #[tokio::test]
    async fn a_body_is_whole_however_it_was_cut_and_refused_once_it_is_too_long() {
        let pieces = |sizes: &'static [usize]| {
            let pieces = sizes.iter().enumerate().map(|(at, &size)| Bytes::from(vec![at as u8; size]));
            Body::from_stream(futures_util::stream::iter(pieces.map(Ok::<_, std::io::Error>)))
        };
        for sizes in [&[][..], &[0], &[3], &[0, 3], &[3, 0, 2], &[1, 2, 3, 4]] {
            let expected: Vec<u8> = sizes.iter().enumerate().flat_map(|(at, &size)| vec![at as u8; size]).collect();
            assert_eq!(whole(pieces(sizes), 10).await.expect("fits"), expected);
        }
        assert!(whole(pieces(&[4, 4, 4]), 10).await.is_err());
        assert!(whole(Body::new(Announced(pieces(&[]), 11)), 10).await.is_err(), "though nothing came");
        assert_eq!(whole(Body::new(Announced(pieces(&[1, 2]), 3)), 10).await.expect("fits").len(), 3);
        let once = Bytes::from_static(b"once");
        assert_eq!(whole(Body::from(once.clone()), 4).await.expect("fits").as_ptr(), once.as_ptr(), "it is not copied");
    }

    #[test]
    fn memory_is_reserved_as_a_body_comes() {
        let of_length = |left| room(&SizeHint::with_exact(left), 1000);
        assert_eq!((of_length(0), of_length(500), of_length(1 << 30)), (0, 500, RESERVED_MAX));
        assert_eq!(room(&SizeHint::with_exact(1 << 30), 8 << 20), 32 << 20);
        let mut bounded = SizeHint::new();
        bounded.set_upper(60 << 20);
        let of_any = |came| room(&bounded, came);
        assert_eq!((of_any(1000), of_any(1 << 20), of_any(4 << 20)), (1000, 1 << 20, 60 << 20));
    }

    #[tokio::test]
    async fn a_body_may_be_as_long_as_the_limit_and_no_longer() {
        assert_eq!(whole(Body::from("four"), 4).await.expect("fits"), "four");
        let refused = whole(Body::from("fives"), 4).await.expect_err("too long").to_string();
        assert!(refused.contains("maximum allowed input size of 4 bytes"), "{refused}");
    }

    #[test]
    fn nothing_is_an_empty_object_and_anything_else_is_refused() {
        assert_eq!(object(b"", "x"), Ok(Object::new()));
        for text in ["[]", "1", "null", "{", "{} {}", "{\"a\":}", &"[".repeat(1000)] {
            let refused = object(text.as_bytes(), "index").expect_err(text).to_string();
            assert!(refused.starts_with("failed to parse the index request as a JSON object: "), "{refused}");
        }
    }

    #[tokio::test]
    async fn settings_are_small_and_objects_have_bounds() {
        assert_eq!(read_small(Body::from("four"), 4, &mut Portion::default()).await.expect("fits"), "four");
        assert!(
            read_small(Body::from(vec![b' '; SMALL_BYTES_MAX + 1]), usize::MAX, &mut Portion::default()).await.is_err()
        );
        let of = |count: usize| {
            let members: Vec<String> = (0..count).map(|at| format!("\"{at}\":0")).collect();
            format!("{{{}}}", members.join(","))
        };
        assert!(parse::<Members>(of(MEMBERS_MAX).as_bytes(), "x").is_ok());
        let refused = parse::<Members>(of(MEMBERS_MAX + 1).as_bytes(), "x").expect_err("too many").to_string();
        assert!(refused.contains("more than 4096 members"), "{refused}");
    }

    #[test]
    fn a_wrong_type_names_the_field() {
        let mut object = object(br#"{"a": 1, "b": "x", "c": -1}"#, "x").expect("an object");
        assert_eq!(
            text(&object, "a").expect_err("no text").message(),
            "Invalid value for 'a': expected a string, got a number"
        );
        assert!(boolean(&object, "b").expect_err("no boolean").message().contains("'b'"));
        assert!(unsigned(&object, "c").expect_err("negative").message().contains("'c'"));
        assert!(take_object(&mut object, "a").expect_err("no object").message().contains("'a'"));
        assert_eq!((text(&object, "z"), boolean(&object, "z"), unsigned(&object, "z")), (Ok(None), Ok(None), Ok(None)));
    }
}
